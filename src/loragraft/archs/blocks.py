"""The parts that decoder architectures share: attention with rotary embedding, dense and routed feed-forward."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from loragraft.archs.hparams import Hparams
from loragraft.graph.build import GraphBuilder, Ref
from loragraft.graph.ops import Graph, Op, TensorFact

Norm = Callable[[GraphBuilder, Ref, str, float], Ref]
Part = Callable[[GraphBuilder, Hparams, Ref, int], Ref]


@dataclass(frozen=True, slots=True)
class Attention:
    """Causal grouped-query attention with rotary embedding. `pairs`: which elements of a head turn together (Llama's
    GGUF rows are permuted for "adjacent", others keep Hugging Face's "halves"). `head_norm`: RMSNorm on each head of
    q and k before the rotation (Qwen3)."""

    pairs: Literal["adjacent", "halves"]
    head_norm: bool = False

    def __call__(self, g: GraphBuilder, h: Hparams, x: Ref, layer: int) -> Ref:
        blk = f"blk.{layer}"
        q, k, v = self._project(g, h, x, blk)
        if self.head_norm:
            q = g.rms_norm(q, f"{blk}.attn_q_norm", h.norm_eps)
            k = g.rms_norm(k, f"{blk}.attn_k_norm", h.norm_eps)
        q = self._rotate(g, h, q, h.heads, f"{blk}.rope_q")
        k = self._rotate(g, h, k, h.kv_heads, f"{blk}.rope_k")
        mixed = g.add(
            Op.ATTENTION,
            (q, k, v),
            label=f"{blk}.attention",
            layer=layer,
            heads=h.heads,
            kv_heads=h.kv_heads,
            head_dim=h.head_dim,
            scale=h.head_dim**-0.5,
            window=h.windows[layer],
        )
        return g.linear(mixed, f"{blk}.attn_output")

    def _project(self, g: GraphBuilder, h: Hparams, x: Ref, blk: str) -> tuple[Ref, Ref, Ref]:
        if not g.has(f"{blk}.attn_qkv.weight"):
            return g.linear(x, f"{blk}.attn_q"), g.linear(x, f"{blk}.attn_k"), g.linear(x, f"{blk}.attn_v")
        fused = g.linear(x, f"{blk}.attn_qkv")
        q, kv = h.heads * h.head_dim, h.kv_heads * h.head_dim
        return (
            g.add(Op.SPLIT, (fused,), label=f"{blk}.attn_qkv.q", start=0, stop=q),
            g.add(Op.SPLIT, (fused,), label=f"{blk}.attn_qkv.k", start=q, stop=q + kv),
            g.add(Op.SPLIT, (fused,), label=f"{blk}.attn_qkv.v", start=q + kv, stop=q + 2 * kv),
        )

    def _rotate(self, g: GraphBuilder, h: Hparams, x: Ref, heads: int, label: str) -> Ref:
        factors = ("rope_freqs.weight",) if g.has("rope_freqs.weight") else ()
        return g.add(
            Op.ROPE,
            (x,),
            factors,
            label,
            heads=heads,
            head_dim=h.head_dim,
            rotary=h.rope.rotary,
            pairs=self.pairs,
            frequencies=h.rope.frequencies,
            magnitude=h.rope.magnitude,
        )


def swiglu(g: GraphBuilder, h: Hparams, x: Ref, layer: int) -> Ref:
    """down(silu(gate(x)) * up(x)); gate and up may be one tensor, gate first (Shazeer 2020, arXiv 2002.05202)."""
    blk = f"blk.{layer}"
    if g.has(f"{blk}.ffn_gate.weight"):
        gate, up = g.linear(x, f"{blk}.ffn_gate"), g.linear(x, f"{blk}.ffn_up")
    else:
        fused = g.linear(x, f"{blk}.ffn_up")
        gate = g.add(Op.SPLIT, (fused,), label=f"{blk}.ffn_up.gate", start=0, stop=h.ff)
        up = g.add(Op.SPLIT, (fused,), label=f"{blk}.ffn_up.up", start=h.ff, stop=2 * h.ff)
    return g.linear(_gated(g, gate, up, f"{blk}.ffn_act"), f"{blk}.ffn_down")


def gelu_mlp(g: GraphBuilder, h: Hparams, x: Ref, layer: int) -> Ref:
    """down(gelu(up(x))), the tanh approximation."""
    blk = f"blk.{layer}"
    up = g.linear(x, f"{blk}.ffn_up")
    active = g.add(Op.GELU, (up,), label=f"{blk}.ffn_act", approximate="tanh")
    return g.linear(active, f"{blk}.ffn_down")


@dataclass(frozen=True, slots=True)
class Routed:
    """Mixture of experts, each a SwiGLU: softmax over all experts, the best k, their weights made to sum to 1 if
    `normalize` (Shazeer et al. 2017, arXiv 1701.06538). A shared expert, where the file has one, is added for every
    token, through a sigmoid gate if it has that too (Qwen2-MoE)."""

    normalize: bool

    def __call__(self, g: GraphBuilder, h: Hparams, x: Ref, layer: int) -> Ref:
        blk = f"blk.{layer}"
        logits = g.linear(x, f"{blk}.ffn_gate_inp")
        ids = g.add(Op.TOP_K, (logits,), label=f"{blk}.ffn_top_k", k=h.experts_used)
        route = g.add(
            Op.ROUTE,
            (logits, ids),
            label=f"{blk}.ffn_route",
            gating="softmax",
            normalize=self.normalize,
            scale=1.0,
        )
        gate, up = self._gate_up(g, x, ids, blk)
        down = g.experts(_gated(g, gate, up, f"{blk}.ffn_act_exps"), ids, f"{blk}.ffn_down_exps")
        routed = g.add(Op.EXPERTS_SUM, (down, route), label=f"{blk}.ffn_experts_sum")
        if not g.has(f"{blk}.ffn_up_shexp.weight"):
            return routed
        return g.add(Op.ADD, (routed, self._shared(g, x, blk)), label=f"{blk}.ffn_shared_sum")

    def _gate_up(self, g: GraphBuilder, x: Ref, ids: Ref, blk: str) -> tuple[Ref, Ref]:
        if not g.has(f"{blk}.ffn_gate_up_exps.weight"):
            return g.experts(x, ids, f"{blk}.ffn_gate_exps"), g.experts(x, ids, f"{blk}.ffn_up_exps")
        fused = g.experts(x, ids, f"{blk}.ffn_gate_up_exps")
        both = g.fact(f"{blk}.ffn_gate_up_exps.weight").shape[-2]
        gate = g.add(Op.SPLIT, (fused,), label=f"{blk}.ffn_gate_up_exps.gate", start=0, stop=both // 2)
        up = g.add(Op.SPLIT, (fused,), label=f"{blk}.ffn_gate_up_exps.up", start=both // 2, stop=both)
        return gate, up

    def _shared(self, g: GraphBuilder, x: Ref, blk: str) -> Ref:
        gate, up = g.linear(x, f"{blk}.ffn_gate_shexp"), g.linear(x, f"{blk}.ffn_up_shexp")
        shared = g.linear(_gated(g, gate, up, f"{blk}.ffn_act_shexp"), f"{blk}.ffn_down_shexp")
        if not g.has(f"{blk}.ffn_gate_inp_shexp.weight"):
            return shared
        strength = g.linear(x, f"{blk}.ffn_gate_inp_shexp")
        strength = g.add(Op.SIGMOID, (strength,), label=f"{blk}.ffn_gate_shexp_sigmoid")
        return g.add(Op.MUL, (shared, strength), label=f"{blk}.ffn_shared_gated")


def _gated(g: GraphBuilder, gate: Ref, up: Ref, label: str) -> Ref:
    active = g.add(Op.SILU, (gate,), label=label)
    return g.add(Op.MUL, (active, up), label=label)


@dataclass(frozen=True, slots=True)
class Decoder:
    """A pre-norm decoder: x + attention(norm(x)), then x + feed_forward(norm(x)), in every layer; the output's weight
    is the embedding's if the file has no other. Called with what a file says and holds, it builds the graph."""

    attention: Part
    feed_forward: Part
    experts: Part | None = None
    """In place of `feed_forward` if the file has experts."""
    norm: Norm = GraphBuilder.rms_norm

    def __call__(self, h: Hparams, tensors: Mapping[str, TensorFact]) -> Graph:
        g = GraphBuilder(h.arch, tensors)
        feed_forward = self.experts if self.experts is not None and h.experts else self.feed_forward
        x = g.embed(g.tokens())
        for layer in range(h.layers):
            blk = f"blk.{layer}"
            mixed = self.attention(g, h, self.norm(g, x, f"{blk}.attn_norm", h.norm_eps), layer)
            x = g.add(Op.ADD, (x, mixed), label=f"{blk}.attn_residual")
            if layer == h.layers - 1:
                x = g.add(Op.LAST, (x,), label="last")
            fed = feed_forward(g, h, self.norm(g, x, f"{blk}.ffn_norm", h.norm_eps), layer)
            x = g.add(Op.ADD, (x, fed), label=f"{blk}.ffn_residual")
        x = self.norm(g, x, "output_norm", h.norm_eps)
        tied = None if g.has("output.weight") else "token_embd"
        return g.finish(g.linear(x, "output", weight_of=tied))
