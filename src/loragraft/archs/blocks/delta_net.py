"""Gated delta net: linear attention whose state forgets, and unlearns what a key held before (Yang et al. 2024, arXiv
2412.06464)."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from loragraft.archs.blocks.short_conv import short_conv
from loragraft.archs.hparams import Hparams
from loragraft.graph.build import GraphBuilder, Ref
from loragraft.graph.ops import Op

_EPSILON = 1e-6
"""Of the lengths of queries and keys, whatever the model's own is."""


@dataclass(frozen=True, slots=True)
class GatedDeltaNet:
    """q, k and v through one short convolution, queries and keys of length 1, the scan, a norm gated by SiLU, and out.
    The gates of decay and of writing are two projections, or one that has them by key head (Qwen3-Next)."""

    tiled: bool
    """Whether value heads with the same key stand `key_heads` apart, and not side by side."""

    def __call__(self, g: GraphBuilder, h: Hparams, x: Ref, layer: int) -> Ref:
        assert h.recurrence is not None
        blk, sizes = f"blk.{layer}", h.recurrence
        key_dim, keys, values = sizes.key_dim, sizes.key_heads * sizes.key_dim, sizes.heads * sizes.value_dim
        fused, z = g.linear(x, f"{blk}.attn_qkv"), g.linear(x, f"{blk}.attn_gate")
        beta, alpha = self._gates(g, h, x, blk)
        mixed = short_conv(g, fused, f"{blk}.ssm_conv1d", layer)
        mixed = g.add(Op.SILU, (mixed,), label=f"{blk}.ssm_conv1d_silu")
        q, k, v = (
            g.split(mixed, first, last, f"{blk}.ssm_{name}")
            for name, first, last in (
                ("q", 0, keys),
                ("k", keys, 2 * keys),
                ("v", 2 * keys, 2 * keys + values),
            )
        )
        # x / |x| as a norm of the mean square; and the scores' 1 / sqrt(key_dim) on the queries
        q = g.scale(self._unit(g, q, key_dim, f"{blk}.ssm_q_unit"), 1 / key_dim, f"{blk}.ssm_q_scaled")
        k = g.scale(self._unit(g, k, key_dim, f"{blk}.ssm_k_unit"), key_dim**-0.5, f"{blk}.ssm_k_scaled")
        beta = g.add(Op.SIGMOID, (beta,), label=f"{blk}.ssm_beta_sigmoid")
        step = g.add(Op.TIME_STEP, (alpha,), (f"{blk}.ssm_dt.bias",), f"{blk}.ssm_dt", low=0.0, high=math.inf)
        g.fact(f"{blk}.ssm_a")
        y = g.add(
            Op.GATED_DELTA,
            (q, k, v, step, beta),
            (f"{blk}.ssm_a",),
            f"{blk}.gated_delta",
            layer=layer,
            tiled=self.tiled,
            **{name: size for name, size in asdict(sizes).items() if name != "taps"},
        )
        gate = g.add(Op.SILU, (z,), label=f"{blk}.attn_gate_silu")
        y = g.add(Op.MUL, (gate, g.rms_norm(y, f"{blk}.ssm_norm", h.norm_eps)), label=f"{blk}.ssm_gated")
        return g.linear(y, f"{blk}.ssm_out")

    @staticmethod
    def _unit(g: GraphBuilder, x: Ref, size: int, label: str) -> Ref:
        return g.plain_rms_norm(x, size, _EPSILON / size, label)

    @staticmethod
    def _gates(g: GraphBuilder, h: Hparams, x: Ref, blk: str) -> tuple[Ref, Ref]:
        if not g.has(f"{blk}.ssm_ba.weight"):
            return g.linear(x, f"{blk}.ssm_beta"), g.linear(x, f"{blk}.ssm_alpha")
        assert h.recurrence is not None
        fused, each = g.linear(x, f"{blk}.ssm_ba"), h.recurrence.heads // h.recurrence.key_heads
        return (
            g.split(fused, 0, each, f"{blk}.ssm_ba.beta", 2 * each),
            g.split(fused, each, 2 * each, f"{blk}.ssm_ba.alpha", 2 * each),
        )
