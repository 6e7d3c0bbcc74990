"""Mamba-2 (Dao and Gu 2024, arXiv 2405.21060)."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from loragraft.archs.blocks.short_conv import short_conv
from loragraft.archs.hparams import Hparams
from loragraft.graph.build import GraphBuilder, Ref
from loragraft.graph.ops import Op


@dataclass(frozen=True, slots=True)
class Mamba2:
    """Gate, x, B, C and the time step in one projection; x, B and C through a short convolution; the scan; a norm of
    what it gives times SiLU of the gate, by group, if the file has one; and out."""

    least_step: float = 0.0
    """Of the time steps."""

    def __call__(self, g: GraphBuilder, h: Hparams, x: Ref, layer: int) -> Ref:
        assert h.recurrence is not None
        blk, sizes = f"blk.{layer}", h.recurrence
        inner, keys = sizes.heads * sizes.value_dim, sizes.key_heads * sizes.key_dim
        fused, convolved = g.linear(x, f"{blk}.ssm_in"), inner + 2 * keys
        gate = g.split(fused, 0, inner, f"{blk}.ssm_in.gate")
        mixed = g.split(fused, inner, inner + convolved, f"{blk}.ssm_in.xbc")
        step = g.split(fused, inner + convolved, inner + convolved + sizes.heads, f"{blk}.ssm_in.dt")
        mixed = short_conv(g, mixed, f"{blk}.ssm_conv1d", layer)
        mixed = g.add(Op.SILU, (mixed,), label=f"{blk}.ssm_conv1d_silu")
        step = g.add(
            Op.TIME_STEP,
            (step,),
            (f"{blk}.ssm_dt.bias",),
            f"{blk}.ssm_dt",
            low=self.least_step,
            high=math.inf,
        )
        parts = (("x", 0, inner), ("b", inner, inner + keys), ("c", inner + keys, convolved))
        values, b, c = (g.split(mixed, first, last, f"{blk}.ssm_{name}") for name, first, last in parts)
        for name in ("ssm_a", "ssm_d"):
            g.fact(f"{blk}.{name}")
        y = g.add(
            Op.STATE_SPACE,
            (values, b, c, step),
            (f"{blk}.ssm_a", f"{blk}.ssm_d"),
            f"{blk}.state_space",
            layer=layer,
            **{name: size for name, size in asdict(sizes).items() if name != "taps"},
        )
        opened = g.add(Op.SILU, (gate,), label=f"{blk}.ssm_gate_silu")
        y = g.add(Op.MUL, (opened, y), label=f"{blk}.ssm_gated")
        if g.has(f"{blk}.ssm_norm.weight"):
            y = g.rms_norm(y, f"{blk}.ssm_norm", h.norm_eps)
        return g.linear(y, f"{blk}.ssm_out")
