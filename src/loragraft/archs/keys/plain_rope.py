"""RoPE without any extension of the context, whose base GGUF leaves out where it is the usual one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from loragraft.archs.config import Config
from loragraft.archs.keys.rule import GgufModel, Rule
from loragraft.archs.keys.values import shortest
from loragraft.errors import UnsupportedError
from loragraft.formats.gguf.values import Metadata, Value

_THETA = 10000.0
"""llama.cpp's where the file has none. Its converter writes none for these architectures, whatever config.json says."""


@dataclass(frozen=True)
class PlainRope(Rule):
    """The base of the rope; `partial`: whether a part of each head may turn, which `RotaryPart` then writes; `names`:
    other keys for the base that config.json may have."""

    partial: bool = False
    names: tuple[str, ...] = ()

    @property
    def config_keys(self) -> frozenset[str]:
        part = [] if self.partial else ["partial_rotary_factor"]
        return frozenset(
            [
                "original_max_position_embeddings",
                "rope_parameters",
                "rope_scaling",
                "rope_theta",
                *part,
                *self.names,
            ]
        )

    def to_gguf(self, config: Config) -> Metadata:
        rope, said = config.rope, f"on architecture {config.values.get('model_type')}"
        if rope["rope_type"] != "default":
            raise UnsupportedError(config.path, f"RoPE scaling {said}", found=rope["rope_type"])
        part = rope.get("partial_rotary_factor")
        if part not in (None, 1.0) and not self.partial:
            raise UnsupportedError(config.path, f"RoPE on a part of each head {said}", found=part)
        theta = float(rope.get("rope_theta") or config.optional_number(*self.names, "rope_theta") or _THETA)
        return {} if theta == _THETA else {"rope.freq_base": Value.f32(theta)}

    def to_config(self, model: GgufModel) -> dict[str, Any]:
        base = shortest(model.keys.number("rope.freq_base", _THETA))
        return dict.fromkeys(("rope_theta", *self.names), base)
