"""The tensors that hold the scales of a weight in NVFP4, by their names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class Shaped(Protocol):
    @property
    def shape(self) -> tuple[int, ...]: ...


def companion(weight: str, part: str) -> str:
    """The tensor that scales `weight` (part `scale`), or its activations (`input_scale`)."""
    return f"{weight.removesuffix('.weight')}.{part}"


def scale_of(weight: str, tensors: Mapping[str, Shaped]) -> str | None:
    """The tensor that holds the per-tensor (per-expert) scale of `weight`, if the file has one: `<base>.scale`. The
    weight of a tied output may keep it under the output's name. A router's is one number; what else is called so
    multiplies what enters it, each channel by its own (Gemma 4)."""
    names = [companion(weight, "scale")]
    if weight == "token_embd.weight" and "output.weight" not in tensors:
        names.append("output.scale")
    found = next((name for name in names if name in tensors), None)
    if found is not None and weight.endswith(".ffn_gate_inp.weight") and tuple(tensors[found].shape) != (1,):
        return None
    return found
