"""Mixtures of experts (Shazeer et al. 2017, arXiv 1701.06538)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from loragraft.archs.blocks.feed_forward import Activation, Gate, gate_of, swiglu
from loragraft.archs.hparams import Hparams, Routing
from loragraft.graph.build import GraphBuilder, Ref
from loragraft.graph.ops import Op

Part = Callable[[GraphBuilder, Hparams, Ref, int], Ref]


@dataclass(frozen=True, slots=True)
class Routed:
    """The best experts of each token, each a gated feed-forward network. `gating` of all experts, then the best k,
    their weights made to sum to 1 if `normalize`; what the file says of it (`Hparams.routing`) goes before. A shared
    expert, where the file has one, is added for every token, through a sigmoid gate if it has that too (Qwen2-MoE).
    Where the file has `ffn_latent_down` and `ffn_latent_up`, the experts are between these (Nemotron 3)."""

    normalize: bool
    gating: Literal["softmax", "sigmoid", "sparse_mixer"] = "softmax"
    margin: float | None = None
    """Of `sparse_mixer`."""
    gate: Gate = swiglu
    scaled_inputs: bool = False
    """The expert's weight multiplies what enters it, not what it gives (Llama 4): of one expert for each token."""
    plain: Activation | None = None
    """Of networks without a gate: down(plain(up(x))), the shared one too."""
    router: Part | None = None
    """What makes the logits; None: `ffn_gate_inp` of x."""
    norm: str | None = None
    """Of what enters the experts, not the router, by its name in a layer: an RMS norm (Gemma 4)."""

    def __call__(self, g: GraphBuilder, h: Hparams, x: Ref, layer: int) -> Ref:
        blk = f"blk.{layer}"
        logits = self.router(g, h, x, layer) if self.router else g.linear(x, f"{blk}.ffn_gate_inp")
        routing = h.routing or Routing(self.gating, self.normalize)
        ids = self._choose(g, h, routing, logits, blk)
        margin: dict[str, Any] = {} if self.margin is None else {"margin": self.margin}
        route = g.add(
            Op.ROUTE,
            (logits, ids),
            label=f"{blk}.ffn_route",
            gating=routing.gating,
            normalize=routing.normalize,
            scale=routing.scale,
            **margin,
        )
        entering = g.add(Op.MUL, (x, route), label=f"{blk}.ffn_scaled") if self.scaled_inputs else x
        if self.norm is not None:
            entering = g.rms_norm(entering, f"{blk}.{self.norm}", h.norm_eps)
        if g.has(f"{blk}.ffn_latent_down.weight"):
            entering = g.linear(entering, f"{blk}.ffn_latent_down")
        down = g.experts(self._active(g, h, entering, ids, blk), ids, f"{blk}.ffn_down_exps")
        label = f"{blk}.ffn_experts_sum"
        routed = (
            g.flat(down, label) if self.scaled_inputs else g.add(Op.EXPERTS_SUM, (down, route), label=label)
        )
        if g.has(f"{blk}.ffn_latent_up.weight"):
            routed = g.linear(routed, f"{blk}.ffn_latent_up")
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

    def _active(self, g: GraphBuilder, h: Hparams, x: Ref, ids: Ref, blk: str) -> Ref:
        label = f"{blk}.ffn_act_exps"
        if self.plain is not None:
            return self.plain(g, g.experts(x, ids, f"{blk}.ffn_up_exps"), label)
        gate, up = self._gate_up(g, x, ids, blk)
        return gate_of(h, self.gate)(g, gate, up, label)

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
        label = f"{blk}.ffn_act_shexp"
        if self.plain is not None:
            active = self.plain(g, g.linear(x, f"{blk}.ffn_up_shexp"), label)
        else:
            gate, up = g.linear(x, f"{blk}.ffn_gate_shexp"), g.linear(x, f"{blk}.ffn_up_shexp")
            active = gate_of(h, self.gate)(g, gate, up, label)
        shared = g.linear(active, f"{blk}.ffn_down_shexp")
        if not g.has(f"{blk}.ffn_gate_inp_shexp.weight"):
            return shared
        strength = g.linear(x, f"{blk}.ffn_gate_inp_shexp")
        strength = g.add(Op.SIGMOID, (strength,), label=f"{blk}.ffn_gate_shexp_sigmoid")
        return g.add(Op.MUL, (shared, strength), label=f"{blk}.ffn_shared_gated")
