"""Which modules an adapter's configuration names, as PEFT reads it: what else its file holds, PEFT leaves out.

Source: peft/tuners/tuners_utils.py (`check_target_module_exists`, `_maybe_include_all_linear_layers`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from loragraft.errors import AdapterError
from loragraft.patterns import PatternError, whole

_LAYER = re.compile(r".*?\.[^.]*\.(\d{1,9})\.")
_ALL_LINEAR = "all-linear"
_EMBEDDING = "model.embed_tokens"
#: Not linear layers, and the output, which `all-linear` leaves out.
_NOT_LINEAR = ("embed_tokens", "wte", "lm_head", "embed_out", "norm")
#: Of layers_pattern; each is compared with every part of a module's name.
_MAX_STEMS = 64

Test = Callable[[str], bool]


class Targets:
    """`names(module)`: whether target_modules, exclude_modules, layers_to_transform and layers_pattern name the module.

    Raises AdapterError for values of another kind.
    """

    def __init__(self, path: Path, config: Mapping[str, Any], notes: list[str]) -> None:
        self._path, self._notes = path, notes
        wanted = config.get("target_modules")
        self.known = wanted not in (None, [], "")
        """Whether anything is named that can be checked."""
        self._wanted = self._test("target_modules", wanted) if self.known else _always
        self._excluded = self._test("exclude_modules", config.get("exclude_modules") or [])
        parameters = config.get("target_parameters")
        named = [name for name in parameters if isinstance(name, str)] if isinstance(parameters, list) else []
        weights = [name.removesuffix(".weight") for name in named if name.endswith(".weight")]
        self._weights = _ends(weights) if weights else _never
        saved = config.get("modules_to_save")
        self._saved = tuple(f".{name}." for name in saved) if isinstance(saved, list | tuple) else ()
        self._layers = self._numbers(config.get("layers_to_transform")) if isinstance(wanted, list) else None
        self._stems = self._patterns(config.get("layers_pattern") or [])
        self._tied = bool(config.get("ensure_weight_tying"))

    def name(self, module: str) -> bool:
        """Whether the configuration names `module` (as the model calls it, without PEFT's prefix)."""
        if any(saved in f".{module}." for saved in self._saved):
            return False
        if self._weights(module):  # target_parameters names its weight (a router's); nothing excludes that
            return True
        if self._excluded(module):
            return False
        if not self._wanted(module):  # a tied output follows the embedding
            return self._tied and module.endswith("lm_head") and self._wanted(_EMBEDDING)
        return self._layers is None or self._layer_of(module) in self._layers

    def _layer_of(self, module: str) -> int | None:
        """The number behind the first of layers_pattern that fits, or else the first number in the name."""
        parts = module.split(".")
        for stem in self._stems:
            for at, part in enumerate(parts[:-1]):
                if part == stem and parts[at + 1].isdecimal():
                    return int(parts[at + 1])
        match = None if self._stems else _LAYER.match(module)
        return int(match[1]) if match else None

    def _test(self, key: str, value: Any) -> Test:
        if value == _ALL_LINEAR:
            return lambda module: not module.endswith(_NOT_LINEAR)
        if isinstance(value, str):
            try:
                return whole(value)
            except PatternError as problem:
                self._notes.append(f"{self._path}: {key} is not checked against the tensors: {problem}")
                if key != "target_modules":
                    return _never
                self.known = False
                return _always
        if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
            raise AdapterError(
                self._path,
                f"bad {key}",
                found=repr(value)[:80],
                expected="a list of names, or an expression",
                hint=f"write the {key} of the training into {self._path}",
            )
        return _ends(value)

    def _patterns(self, value: Any) -> list[str]:
        stems = [value] if isinstance(value, str) else value
        named = isinstance(stems, list | tuple) and all(isinstance(stem, str) for stem in stems)
        if not named or len(stems) > _MAX_STEMS:
            raise AdapterError(
                self._path,
                "bad layers_pattern",
                found=repr(value)[:80],
                expected=f"a name, or at most {_MAX_STEMS} of them",
                hint=f"write the layers_pattern of the training into {self._path}",
            )
        return list(stems)

    def _numbers(self, value: Any) -> frozenset[int] | None:
        numbers = value if isinstance(value, list | tuple) else [] if value is None else [value]
        if not all(type(number) is int for number in numbers):
            raise AdapterError(
                self._path, "bad layers_to_transform", found=repr(value)[:80], expected="numbers of layers"
            )
        return frozenset(numbers) or None


def _ends(names: Iterable[str]) -> Test:
    known = frozenset(names)

    def test(module: str) -> bool:
        parts = module.split(".")
        return any(".".join(parts[at:]) in known for at in range(len(parts)))

    return test


def _always(module: str) -> bool:
    return True


def _never(module: str) -> bool:
    return False
