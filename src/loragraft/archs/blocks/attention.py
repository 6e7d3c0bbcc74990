"""Causal grouped-query attention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal

from loragraft.archs.blocks.norms import Norm
from loragraft.archs.hparams import Hparams, Layer
from loragraft.archs.rope import LONG_FACTORS
from loragraft.graph.build import GraphBuilder, Ref
from loragraft.graph.ops import Op


@dataclass(frozen=True, slots=True)
class Attention:
    """Causal grouped-query attention, with rotary embedding in layers that have one.

    What the layer says: heads, sizes, rope, window. What the file has: q, k and v in one tensor or in three, biases,
    sinks.
    """

    pairs: Literal["adjacent", "halves"]
    """Which elements of a head turn together: GGUF's rows are permuted for "adjacent" in Llama's family, others keep
    Hugging Face's "halves"."""
    head_norm: Norm | None = None
    """On q and k before the rotation: on each head, or across all, as the weight is long (Qwen3; OLMo 2)."""
    norm_last: bool = False
    """It stands behind the rotation (Hunyuan)."""
    gated: bool = False
    """Each head's query has a gate of as many elements behind it in the projection; what the head gives is multiplied
    by its sigmoid (Qiu et al. 2025, arXiv 2505.06708; Qwen3-Next)."""

    sub_norm: Norm | None = None
    """On what all heads give together, before the output (BitNet)."""
    value_norm: bool = False
    """v is divided by its root mean square, each head's by its own, without a weight (Gemma 4)."""
    source: Callable[[Hparams, int], int] | None = None
    """The layer whose keys and values a layer has; None: always its own. Each keeps them for itself."""

    def __call__(self, g: GraphBuilder, h: Hparams, x: Ref, layer: int) -> Ref:
        blk, own = f"blk.{layer}", h.layers[layer]
        source = layer if self.source is None else self.source(h, layer)
        if source != layer:
            return self._with_others(g, h, x, layer, source)
        q, k, v = (
            g.clamp(part, h.clamp_qkv, f"{blk}.clamp_{name}")
            for part, name in zip(self._project(g, own, x, blk), "qkv", strict=True)
        )
        both, size = q, own.key_dim
        if self.gated:
            q = g.split(both, 0, size, f"{blk}.attn_q.query", 2 * size)
        if not self.norm_last:
            q, k = self._normed(g, h, q, k, blk)
        q = self._rotate(g, own, q, own.heads, f"{blk}.rope_q")
        k = self._rotate(g, own, k, own.kv_heads, f"{blk}.rope_k")
        if self.norm_last:
            q, k = self._normed(g, h, q, k, blk)
        if own.sharpening is not None:
            q = g.add(Op.POSITION_SCALE, (q,), label=f"{blk}.attn_q_sharpened", **asdict(own.sharpening))
        if self.value_norm:
            v = g.plain_rms_norm(v, own.value_dim, h.norm_eps, f"{blk}.attn_v_norm")
        if self.source is not None:
            g.kept |= {f"{blk}.k": k, f"{blk}.v": v}
        mixed = self._attend(g, h, layer, q, k, v)
        if self.gated:
            gate = g.split(both, size, 2 * size, f"{blk}.attn_q.gate", 2 * size)
            gate = g.add(Op.SIGMOID, (gate,), label=f"{blk}.attn_gate_sigmoid")
            mixed = g.add(Op.MUL, (mixed, gate), label=f"{blk}.attn_gated")
        if self.sub_norm is not None:
            mixed = self.sub_norm(g, h, mixed, f"{blk}.attn_sub_norm")
        return g.linear(mixed, f"{blk}.attn_output")

    def _with_others(self, g: GraphBuilder, h: Hparams, x: Ref, layer: int, source: int) -> Ref:
        """With the keys and values of the layer `source`, normed and turned as they are there."""
        blk, own = f"blk.{layer}", h.layers[layer]
        q = g.linear(x, f"{blk}.attn_q")
        if self.head_norm is not None:
            q = self.head_norm(g, h, q, f"{blk}.attn_q_norm")
        q = self._rotate(g, own, q, own.heads, f"{blk}.rope_q")
        mixed = self._attend(g, h, layer, q, g.kept[f"blk.{source}.k"], g.kept[f"blk.{source}.v"])
        return g.linear(mixed, f"{blk}.attn_output")

    def _attend(self, g: GraphBuilder, h: Hparams, layer: int, q: Ref, k: Ref, v: Ref) -> Ref:
        blk, own = f"blk.{layer}", h.layers[layer]
        sinks = f"{blk}.attn_sinks.weight"
        return g.add(
            Op.ATTENTION,
            (q, k, v),
            (sinks,) if g.has(sinks) else (),
            label=f"{blk}.attention",
            layer=layer,
            heads=own.heads,
            kv_heads=own.kv_heads,
            head_dim=own.key_dim,
            scale=own.key_dim**-0.5 if h.attention_scale is None else h.attention_scale,
            window=own.window,
            value_dim=None if own.value_dim == own.key_dim else own.value_dim,
            softcap=h.attention_softcap,
            slopes=own.slopes or None,
            chunk=own.chunk,
        )

    def _normed(self, g: GraphBuilder, h: Hparams, q: Ref, k: Ref, blk: str) -> tuple[Ref, Ref]:
        if self.head_norm is None:
            return q, k
        return self.head_norm(g, h, q, f"{blk}.attn_q_norm"), self.head_norm(g, h, k, f"{blk}.attn_k_norm")

    def _project(self, g: GraphBuilder, own: Layer, x: Ref, blk: str) -> tuple[Ref, Ref, Ref]:
        if not g.has(f"{blk}.attn_qkv.weight"):
            q, k = g.linear(x, f"{blk}.attn_q"), g.linear(x, f"{blk}.attn_k")
            keys_are_values = self.value_norm and not g.has(f"{blk}.attn_v.weight")
            return q, k, k if keys_are_values else g.linear(x, f"{blk}.attn_v")
        fused = g.linear(x, f"{blk}.attn_qkv")
        q, k, v = own.heads * own.key_dim, own.kv_heads * own.key_dim, own.kv_heads * own.value_dim
        return (
            g.split(fused, 0, q, f"{blk}.attn_qkv.q"),
            g.split(fused, q, q + k, f"{blk}.attn_qkv.k"),
            g.split(fused, q + k, q + k + v, f"{blk}.attn_qkv.v"),
        )

    def _rotate(self, g: GraphBuilder, own: Layer, x: Ref, heads: int, label: str) -> Ref:
        if own.rope is None:
            return x
        names = LONG_FACTORS if own.rope.original else ("rope_freqs.weight",)
        factors = tuple(name for name in names if g.has(name) and own.rope.factors)
        return g.add(
            Op.ROPE,
            (x,),
            factors,
            label,
            heads=heads,
            head_dim=own.key_dim,
            rotary=own.rope.rotary,
            pairs=self.pairs,
            frequencies=own.rope.frequencies,
            magnitude=own.rope.magnitude,
            **({"most": own.rope.most} if own.rope.most is not None else {}),
            **({"context": own.rope.context, "original": own.rope.original} if own.rope.original else {}),
        )
