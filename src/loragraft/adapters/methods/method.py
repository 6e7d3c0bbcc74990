"""What a method of PEFT is to us: its tensors' names, its settings, and what it does to a module's weight."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loragraft.adapters.transform import Rotation
from loragraft.arrays import Floats
from loragraft.errors import AdapterError
from loragraft.patterns import PatternError, SuffixTable


@dataclass(frozen=True, slots=True)
class ModuleDelta:
    """The pair of one module as stored: A [r, in], B [out, r]; for an embedding A [r, vocab], B [d, r]; for stacked
    experts A [E * r, in] with the expert slowest, B [out, r * E] with the expert fastest."""

    module: str
    a: Floats
    b: Floats
    embedding: bool = False
    bias: Floats | None = None
    """Of B, float32 [out] (`lora_bias`)."""
    magnitude: Floats | None = None
    """DoRA's, float32 [out]."""
    scale: float | None = None
    """Of B A; None: by the LoRA settings."""
    cut: bool = False
    """Whether A is that of the widest module, of which each one takes as many columns as it has inputs."""
    parts: tuple[str, ...] = ("A", "B")
    """The tensors that it was made of, biases and magnitudes left out."""

    @property
    def of_parameter(self) -> bool:
        """Whether it adapts a parameter that is not a module's weight: one of a stack of experts."""
        return self.module.removesuffix(".base_layer").endswith(".experts") or ".base_layer" in self.module


@dataclass(frozen=True, slots=True)
class ModuleTransform:
    """What multiplies a module's weight: see `adapters.transform`."""

    module: str
    parts: tuple[str, ...]
    lengths: Floats | None = None
    columns: Floats | None = None
    rotation: Rotation | None = None
    of_bias: bool = False
    """Whether the bias is scaled by `lengths` too."""


@dataclass(frozen=True)
class Context:
    """One adapter of a method: its configuration, and tensors that belong to no module."""

    path: Path
    config: Mapping[str, Any]
    shared: dict[str, Floats] = field(default_factory=dict)
    most: int = 1 << 30
    """Elements of the largest weight that it may be for: what is made of small tensors is no larger."""

    def number(self, key: str, module: str = "", *, least: float = 0, whole: bool = False) -> Any:
        """A setting greater than `least`; that of `module` from `rank_pattern` or `alpha_pattern`, if there is one."""
        value = self.config.get(key)
        pattern = {"r": "rank_pattern", "alpha": "alpha_pattern"}.get(key)
        if module and pattern and isinstance(table := self.config.get(pattern), Mapping) and table:
            try:
                value = SuffixTable(table).find(module, value)
            except PatternError as problem:
                raise AdapterError(self.path, f"{pattern} has a bad expression: {problem}") from None
        wanted = int if whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, wanted) or not least < value < 1e9:
            kind = "a whole number" if whole else "a number"
            raise AdapterError(
                self.path, f"bad {key}", found=repr(value)[:80], expected=f"{kind} > {least:g}"
            )
        return value

    def bound(self, module: str, rows: int, columns: int) -> None:
        """Raises AdapterError, before anything is made, for a change of [rows, columns] that no weight can have."""
        if rows * columns > self.most:
            raise self.misfit(
                module, f"a change of [{rows}, {columns}]", f"at most {self.most} weights, as in the base"
            )

    def misfit(self, module: str, found: object, expected: object) -> AdapterError:
        return AdapterError(
            self.path, f"the tensors of {module} do not fit together", found=found, expected=expected
        )


Build = Callable[[Context, str, Mapping[str, Floats]], ModuleDelta | ModuleTransform]


@dataclass(frozen=True, slots=True)
class Method:
    """`parts`: how the names of a module's tensors end; `build` makes of those of one module what it does."""

    peft_type: str
    parts: frozenset[str]
    build: Build
    honoured: frozenset[str] = frozenset()
    """Keys of adapter_config.json that count."""
    shared: frozenset[str] = frozenset()
    """Names of tensors that belong to all modules, behind `base_model.`."""
    harmless: frozenset[str] = frozenset()
    """Keys that say how it was trained."""


def need(context: Context, module: str, parts: Mapping[str, Floats], *names: str) -> tuple[Floats, ...]:
    """These tensors of a module. Raises AdapterError if one is missing, or there are others."""
    if parts.keys() != set(names):
        raise AdapterError(
            context.path,
            f"{module} does not have the tensors of its method",
            found=", ".join(sorted(parts)),
            expected=", ".join(names),
        )
    return tuple(parts[name] for name in names)
