"""A model's config.json, read with the defaults that transformers would fill in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loragraft.archs.metadata import MAX_LAYERS
from loragraft.errors import CheckpointError, UnsupportedError

#: RoPE parameters that are numbers above 0.
_POSITIVE = frozenset(
    [
        "rope_theta",
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
        "attention_factor",
        "beta_fast",
        "beta_slow",
    ]
)
#: What transformers calls the longest sequence that a model was trained for.
CONTEXT = ("max_position_embeddings", "n_ctx", "n_positions", "max_sequence_length")
LAYERS = ("num_hidden_layers", "n_layers", "n_layer", "num_layers")
_LIMIT = 2**31
"""No count in a config.json is larger; a file that says so is refused before anything is sized by it."""


@dataclass(frozen=True)
class Config:
    """config.json's values over an architecture's `defaults`; every accessor raises CheckpointError naming the key."""

    path: Path
    values: Mapping[str, Any]
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def get(self, *keys: str) -> Any:
        """The first of `keys` that is set (not null), else the first that has a default, else None."""
        for source in (self.values, self.defaults):
            for key in keys:
                if source.get(key) is not None:
                    return source[key]
        return None

    def given(self, key: str) -> Any:
        """`key` as transformers takes it where null has a meaning: the default is only for a key that is absent."""
        return self.values[key] if key in self.values else self.defaults.get(key)

    def optional_integer(self, *keys: str) -> int | None:
        value = self.get(*keys)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _LIMIT:
            raise CheckpointError(
                self.path, f"bad {keys[0]}", found=repr(value), expected="a whole number >= 0"
            )
        return value

    def integer(self, *keys: str) -> int:
        """A count that must be there and be at least one."""
        value = self.optional_integer(*keys)
        if not value:
            raise CheckpointError(
                self.path, f"{keys[0]} is missing or zero", found=value, expected="a whole number > 0"
            )
        return value

    def optional_number(self, *keys: str) -> float | None:
        value = self.get(*keys)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise CheckpointError(self.path, f"bad {keys[0]}", found=repr(value), expected="a number")
        return float(value)

    def number(self, *keys: str) -> float:
        """A number that must be there."""
        value = self.optional_number(*keys)
        if value is None:
            raise CheckpointError(self.path, f"{keys[0]} is missing", expected="a number")
        return value

    @property
    def n_heads(self) -> int:
        return self.integer("num_attention_heads", "n_heads", "n_head")

    @property
    def n_kv_heads(self) -> int:
        if self.given("num_key_value_heads") is None and self.values.get("n_kv_heads") is None:
            return self.n_heads
        return self.optional_integer("num_key_value_heads", "n_kv_heads") or self.n_heads

    @property
    def hidden_size(self) -> int:
        return self.integer("hidden_size", "n_embd", "dim")

    @property
    def head_dim(self) -> int:
        return self.optional_integer("head_dim") or self.hidden_size // self.n_heads

    @property
    def n_layers(self) -> int:
        kinds = self.get("layers_block_type")
        named = (
            self.get(*LAYERS) is None and isinstance(kinds, list) and kinds
        )  # Nemotron-H's count is the list's
        layers = len(kinds) if named else self.integer(*LAYERS)
        if layers > MAX_LAYERS:
            raise CheckpointError(
                self.path, "more layers than any model has", found=layers, expected=f"<= {MAX_LAYERS}"
            )
        return layers

    @property
    def context(self) -> int:
        return self.integer(*CONTEXT)

    @property
    def rope(self) -> dict[str, Any]:
        """The RoPE parameters in the layout of transformers 5: rope_type, rope_theta and what the type needs.

        Older files have `rope_theta` and `rope_scaling` (with `type` for `rope_type`) at the top instead; where both
        are there, transformers takes `rope_scaling`. An original_max_position_embeddings at the top goes before one
        within.
        """
        rope = self._object("rope_scaling", "rope_parameters")
        original = "original_max_position_embeddings"
        for key in ("rope_theta", "partial_rotary_factor", original):
            if self.get(key) is not None and (rope.get(key) is None or key == original):
                rope[key] = self.get(key)
        nested = next((key for key, value in rope.items() if isinstance(value, dict)), None)
        if nested is not None:
            raise UnsupportedError(
                self.path, "RoPE that differs between layers", found=f"rope_parameters.{nested}"
            )
        return self._checked(rope)

    def rope_of(self, layers: str, theta: str, *, scaling: bool) -> dict[str, Any]:
        """As `rope`, of the layers of one kind of `layer_types`: `rope_parameters.<layers>`.

        Older files have its base at the top, under `theta`, and `rope_scaling`, if it is for these layers (`scaling`).
        """
        by_kind = self._object("rope_parameters")
        given = by_kind.get(layers) or {}
        if not isinstance(given, dict):
            raise CheckpointError(
                self.path, f"bad rope_parameters.{layers}", found=repr(given), expected="an object"
            )
        rope = {**given, **(self._object("rope_scaling") if scaling else {})}
        if rope.get("rope_theta") is None:
            rope["rope_theta"] = self.get(theta)
        return self._checked(rope)

    def _object(self, *keys: str) -> dict[str, Any]:
        given = self.get(*keys) or {}
        if not isinstance(given, dict):
            raise CheckpointError(self.path, f"bad {keys[-1]}", found=repr(given), expected="an object")
        return dict(given)

    def _checked(self, rope: dict[str, Any]) -> dict[str, Any]:
        rope.setdefault("rope_type", rope.get("type") or "default")
        for key in _POSITIVE & rope.keys():
            value = rope[key]
            if value is None and key != "rope_theta":
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise CheckpointError(self.path, f"bad {key}", found=repr(value), expected="a number > 0")
        return rope
