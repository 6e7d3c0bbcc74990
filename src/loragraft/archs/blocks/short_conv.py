"""Causal convolutions over a few tokens, each channel by itself."""

from __future__ import annotations

from loragraft.archs.hparams import Hparams
from loragraft.graph.build import GraphBuilder, Ref
from loragraft.graph.ops import Op


def short_conv(g: GraphBuilder, x: Ref, base: str, layer: int) -> Ref:
    """By the weight and, if there is one, the bias of `base`."""
    g.fact(f"{base}.weight")
    bias = f"{base}.bias"
    weights = (f"{base}.weight", *((bias,) if g.has(bias) else ()))
    return g.add(Op.SHORT_CONV, (x,), weights, base, layer=layer)


def gated_short_conv(g: GraphBuilder, h: Hparams, x: Ref, layer: int) -> Ref:
    """out(c * conv(b * x)) of b, c and x in one projection (LFM2)."""
    base, width = f"blk.{layer}.shortconv", h.width
    fused = g.linear(x, f"{base}.in_proj")
    before, behind, values = (
        g.split(fused, i * width, (i + 1) * width, f"{base}.{name}") for i, name in enumerate("bcx")
    )
    mixed = short_conv(g, g.add(Op.MUL, (before, values), label=f"{base}.gated"), f"{base}.conv", layer)
    return g.linear(g.add(Op.MUL, (behind, mixed), label=f"{base}.out"), f"{base}.out_proj")
