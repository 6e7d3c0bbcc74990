"""What conversion knows of one architecture's Hugging Face checkpoints, and the registry of all that it knows.

An architecture's file has two halves: how a checkpoint of it becomes GGUF (its `ARCH` record: config.json to
hyperparameters, the rows that RoPE's convention permutes), and the graph it computes (its `build`, listed in
archs/graphs.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from loragraft.archs.config import Config
from loragraft.errors import UnsupportedError
from loragraft.formats.gguf.values import Value

#: The modules with tensors of a decoder as Llama named them; gguf's name map knows every architecture's names at once,
#: and would take another's for this one's.
LLAMA_MODULES = frozenset(
    [
        "embed_tokens",
        "lm_head",
        "norm",
        "input_layernorm",
        "post_attention_layernorm",
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    ]
)


@dataclass(frozen=True, slots=True)
class Mixture:
    """What transformers calls a mixture of experts that GGUF counts to a dense model's architecture."""

    model_type: str
    hf_class: str
    block: str
    """The module of a layer in which the router and `experts.<i>` lie."""
    router: str
    projections: frozenset[str]
    """Of each expert."""


@dataclass(frozen=True, slots=True)
class Arch:
    """One architecture, by its name in `general.architecture`."""

    name: str
    model_types: tuple[str, ...]
    """The `model_type`s of config.json that are this architecture."""
    hf_class: str = ""
    """The class of transformers that runs it, for the `architectures` of an exported config.json."""
    modules: frozenset[str] = LLAMA_MODULES
    """The last parts of the names of modules that hold tensors."""
    mixture: Mixture | None = None
    """What a model of this architecture is if it has experts, and has another name then."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """What transformers assumes where config.json is silent, as far as it differs from Config's own rules."""
    requires: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """config.json keys whose other values the GGUF architecture cannot express: a model with one is refused."""
    ignores: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    """The same, where the deviation only shows on long texts: a model with another value is converted with a note."""
    writes_head_dim: bool = False
    """Whether key_length and value_length are written even when config.json does not name head_dim."""
    extra_hyperparameters: Callable[[Config], Mapping[str, Value]] = lambda config: {}
    """Keys after the common ones, without the architecture's prefix."""
    rotary: Mapping[str, str] = field(default_factory=dict)
    """Modules whose rows change from transformers' RoPE order (halves) to GGUF's (adjacent pairs), each with
    what counts its heads: "heads" or "kv_heads"."""
    rope_freqs: Callable[[Config], Any] = lambda config: None
    """The `rope_freqs.weight` tensor (float32 [rotary/2]) that the RoPE scaling needs, or None."""


class Registry:
    """Architectures by GGUF name and by model_type; a second claim to either is an error at definition."""

    def __init__(self, archs: Iterable[Arch]) -> None:
        self._by_name: dict[str, Arch] = {}
        self._by_model_type: dict[str, Arch] = {}
        for arch in archs:
            for table, key in [
                (self._by_name, arch.name),
                *((self._by_model_type, t) for t in arch.model_types),
            ]:
                if key in table:
                    raise ValueError(f"two architectures claim {key!r}")
                table[key] = arch

    def __iter__(self) -> Iterator[Arch]:
        return iter(self._by_name.values())

    def by_name(self, name: str, subject: str = "model") -> Arch:
        """The architecture that a GGUF calls `name`; `subject` names the file in the error."""
        return self._find(self._by_name, name, subject)

    def by_model_type(self, model_type: str, subject: str = "model") -> Arch:
        """The architecture that config.json calls `model_type`."""
        return self._find(self._by_model_type, model_type, subject)

    @staticmethod
    def _find(table: Mapping[str, Arch], key: str, subject: str) -> Arch:
        if key not in table:
            raise UnsupportedError(
                subject,
                "unknown architecture",
                found=repr(key),
                expected="one of " + ", ".join(sorted(table)),
            )
        return table[key]
