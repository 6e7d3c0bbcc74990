"""Mixtures of experts (Shazeer et al. 2017, arXiv 1701.06538)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from loragraft.archs.blocks.feed_forward import Gate, gate_of, swiglu
from loragraft.archs.hparams import Hparams, Routing
from loragraft.graph.build import GraphBuilder, Ref
from loragraft.graph.ops import Op


@dataclass(frozen=True, slots=True)
class Routed:
    """The best experts of each token, each a gated feed-forward network. `gating` of all experts, then the best k,
    their weights made to sum to 1 if `normalize`; what the file says of it (`Hparams.routing`) goes before. A shared
    expert, where the file has one, is added for every token, through a sigmoid gate if it has that too (Qwen2-MoE)."""

    normalize: bool
    gating: Literal["softmax", "sigmoid"] = "softmax"
    gate: Gate = swiglu
    scaled_inputs: bool = False
    """The expert's weight multiplies what enters it, not what it gives (Llama 4): of one expert for each token."""

    def __call__(self, g: GraphBuilder, h: Hparams, x: Ref, layer: int) -> Ref:
        blk = f"blk.{layer}"
        logits = g.linear(x, f"{blk}.ffn_gate_inp")
        routing = h.routing or Routing(self.gating, self.normalize)
        ids = self._choose(g, h, routing, logits, blk)
        route = g.add(
            Op.ROUTE,
            (logits, ids),
            label=f"{blk}.ffn_route",
            gating=routing.gating,
            normalize=routing.normalize,
            scale=routing.scale,
        )
        entering = g.add(Op.MUL, (x, route), label=f"{blk}.ffn_scaled") if self.scaled_inputs else x
        gate, up = self._gate_up(g, entering, ids, blk)
        down = g.experts(
            gate_of(h, self.gate)(g, gate, up, f"{blk}.ffn_act_exps"), ids, f"{blk}.ffn_down_exps"
        )
        label = f"{blk}.ffn_experts_sum"
        routed = (
            g.flat(down, label) if self.scaled_inputs else g.add(Op.EXPERTS_SUM, (down, route), label=label)
        )
        if not g.has(f"{blk}.ffn_up_shexp.weight"):
            return routed
        return g.add(Op.ADD, (routed, self._shared(g, h, x, blk)), label=f"{blk}.ffn_shared_sum")

    def _choose(self, g: GraphBuilder, h: Hparams, routing: Routing, logits: Ref, blk: str) -> Ref:
        """The gates' values order experts as the logits do, but with a bias, and in the sums of groups."""
        bias = f"{blk}.exp_probs_b.bias"
        biases = (bias,) if g.has(bias) else ()
        groups: dict[str, int] = {}
        if routing.groups > 1:
            groups = {"groups": routing.groups, "groups_used": routing.groups_used}
            groups["group_best"] = routing.group_best
        gating = {"gating": routing.gating} if biases or groups else {}
        return g.add(Op.TOP_K, (logits,), biases, f"{blk}.ffn_top_k", k=h.experts_used, **gating, **groups)

    def _gate_up(self, g: GraphBuilder, x: Ref, ids: Ref, blk: str) -> tuple[Ref, Ref]:
        if not g.has(f"{blk}.ffn_gate_up_exps.weight"):
            return g.experts(x, ids, f"{blk}.ffn_gate_exps"), g.experts(x, ids, f"{blk}.ffn_up_exps")
        fused = g.experts(x, ids, f"{blk}.ffn_gate_up_exps")
        both = g.fact(f"{blk}.ffn_gate_up_exps.weight").shape[-2]
        return (
            g.split(fused, 0, both // 2, f"{blk}.ffn_gate_up_exps.gate"),
            g.split(fused, both // 2, both, f"{blk}.ffn_gate_up_exps.up"),
        )

    def _shared(self, g: GraphBuilder, h: Hparams, x: Ref, blk: str) -> Ref:
        gate, up = g.linear(x, f"{blk}.ffn_gate_shexp"), g.linear(x, f"{blk}.ffn_up_shexp")
        shared = g.linear(gate_of(h, self.gate)(g, gate, up, f"{blk}.ffn_act_shexp"), f"{blk}.ffn_down_shexp")
        if not g.has(f"{blk}.ffn_gate_inp_shexp.weight"):
            return shared
        strength = g.linear(x, f"{blk}.ffn_gate_inp_shexp")
        strength = g.add(Op.SIGMOID, (strength,), label=f"{blk}.ffn_gate_shexp_sigmoid")
        return g.add(Op.MUL, (shared, strength), label=f"{blk}.ffn_shared_gated")
