"""The tensors that hold the scales of a weight in NVFP4, by their names."""

from __future__ import annotations

from collections.abc import Container


def companion(weight: str, part: str) -> str:
    """The tensor that scales `weight` (part `scale`), or its activations (`input_scale`)."""
    return f"{weight.removesuffix('.weight')}.{part}"


def scale_of(weight: str, tensors: Container[str]) -> str | None:
    """The tensor that holds the per-tensor (per-expert) scale of `weight`, if the file has one: `<base>.scale`. The
    weight of a tied output may keep it under the output's name. Routers have none: what is called so multiplies their
    inputs (Gemma 4)."""
    if weight.endswith(".ffn_gate_inp.weight"):
        return None
    names = [companion(weight, "scale")]
    if weight == "token_embd.weight" and "output.weight" not in tensors:
        names.append("output.scale")
    return next((name for name in names if name in tensors), None)
