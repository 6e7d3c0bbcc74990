"""Alternating updates (Baykal et al. 2023, arXiv 2301.13310): a residual stream of several values, of which each layer
works on one, predicts the others before, and corrects them all after; beside LAuReL, a residual branch of low rank
(Menghani et al. 2024, arXiv 2411.07501), and an embedding for each layer (Gemma 3n)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from loragraft.archs.blocks.decoder import Part
from loragraft.archs.blocks.norms import rms_norm
from loragraft.archs.blocks.per_layer import embed_per_layer, from_per_layer
from loragraft.archs.hparams import Hparams
from loragraft.graph.build import GraphBuilder, Ref
from loragraft.graph.ops import Graph, Op, TensorFact

_LEAST = 1e-5
"""Of the mean square of a value that is made as large as another."""


@dataclass(frozen=True, slots=True)
class AltUp:
    """A decoder of `altup` values (`Hparams.extra`), [T, altup * d] one after the other; its layers work on number
    `active`. Called with what a file says and holds, it builds the graph."""

    attention: Part
    feed_forward: Part
    unused: Callable[[Hparams, str], bool]
    """Whether the architecture knowingly does without the tensor of this name."""

    def __call__(self, h: Hparams, tensors: Mapping[str, TensorFact]) -> Graph:
        g = GraphBuilder(h.arch, tensors)
        ids = g.tokens()
        x = g.embed(ids, arch_scale=h.embedding_scale)
        embed_per_layer(g, h, ids, x)
        others = g.experts(x, _each(g, h, x), "altup_proj")
        others = g.add(Op.MATCH_RMS, (others, x), label="altup_proj", least=_LEAST)
        streams = g.concat(x, g.flat(others, "altup_proj"), "altup")
        for layer in range(len(h.layers)):
            g.cut(streams)
            streams = self._layer(g, h, streams, layer)
        x = _merged(g, h, streams)
        g.cut(x)
        x = rms_norm(g, h, x, "output_norm")
        logits = g.linear(x, "output", weight_of=None if g.has("output.weight") else "token_embd")
        logits = g.soft_cap(logits, h.logit_softcap, "logit_softcap")
        return g.finish(logits, [name for name in tensors if self.unused(h, name)])

    def _layer(self, g: GraphBuilder, h: Hparams, streams: Ref, layer: int) -> Ref:
        blk, active = f"blk.{layer}", h.extra["active"]
        predicted = _predicted(g, h, streams, layer)
        x = rms_norm(g, h, predicted[active], f"{blk}.attn_norm")
        laurel = g.linear(g.linear(x, f"{blk}.laurel_l"), f"{blk}.laurel_r")
        laurel = rms_norm(g, h, laurel, f"{blk}.laurel_post_norm")
        laurel = g.add(Op.ADD, (x, laurel), label=f"{blk}.laurel")
        mixed = rms_norm(g, h, self.attention(g, h, x, layer), f"{blk}.post_attention_norm")
        if layer == len(h.layers) - 1:
            *predicted, laurel, mixed = (
                g.add(Op.LAST, (value,), label="last") for value in (*predicted, laurel, mixed)
            )
        mixed = g.add(Op.ADD, (predicted[active], mixed), label=f"{blk}.attn_residual")
        mixed = g.add(Op.ADD, (mixed, laurel), label=f"{blk}.laurel_residual")
        mixed = g.scale(mixed, 2**-0.5, f"{blk}.laurel_residual")
        added = self.feed_forward(g, h, rms_norm(g, h, mixed, f"{blk}.ffn_norm"), layer)
        added = rms_norm(g, h, added, f"{blk}.post_ffw_norm")
        return _corrected(g, h, predicted, g.add(Op.ADD, (mixed, added), label=f"{blk}.ffn_residual"), layer)


def _each(g: GraphBuilder, h: Hparams, x: Ref) -> Ref:
    """The numbers of all matrices of a stack with one for each value but the first."""
    return g.add(Op.ALL_EXPERTS, (x,), label="altup_others", count=h.extra["altup"] - 1)


def _one(g: GraphBuilder, h: Hparams, streams: Ref, number: int, label: str) -> Ref:
    return g.split(streams, number * h.width, (number + 1) * h.width, label)


def _modalities(g: GraphBuilder, h: Hparams, x: Ref, blk: str) -> Ref:
    """What the coefficients are made of: [T, altup]."""
    routed = rms_norm(g, h, x, f"{blk}.altup_router_norm")
    routed = g.linear(routed, f"{blk}.altup_router", arch_scale=1.0 / h.width)
    return g.add(Op.TANH, (routed,), label=f"{blk}.altup_modalities")


def _predicted(g: GraphBuilder, h: Hparams, streams: Ref, layer: int) -> list[Ref]:
    """Each value with a mixture of all added, by coefficients made of the active one."""
    blk, count = f"blk.{layer}", h.extra["altup"]
    active = _one(g, h, streams, h.extra["active"], f"{blk}.altup_active")
    coefficients = g.linear(_modalities(g, h, active, blk), f"{blk}.altup_predict_coef")
    values = g.heads(streams, count, f"{blk}.altup_values")
    found = []
    for number in range(count):
        label = f"{blk}.altup_predicted"
        own = g.split(coefficients, number * count, (number + 1) * count, label)
        mixture = g.add(Op.EXPERTS_SUM, (values, own), label=label)
        found.append(g.add(Op.ADD, (mixture, _one(g, h, streams, number, label)), label=label))
    return found


def _corrected(g: GraphBuilder, h: Hparams, predicted: list[Ref], activated: Ref, layer: int) -> Ref:
    """The values by how much the active one is other than predicted, and the layer's embedding on all but the first."""
    blk, active = f"blk.{layer}", h.extra["active"]
    label = f"{blk}.altup_corrected"
    coefficients = g.linear(_modalities(g, h, activated, blk), f"{blk}.altup_correct_coef")
    coefficients = g.add(Op.SHIFT, (coefficients,), label=label, value=1.0)
    innovation = g.add(Op.ADD, (activated, g.scale(predicted[active], -1.0, label)), label=label)
    corrected = []
    for number, value in enumerate(predicted):
        own = g.split(coefficients, number, number + 1, label)
        change = g.add(Op.MUL, (innovation, own), label=label)
        corrected.append(g.add(Op.ADD, (change, value), label=label))
    scale = f"{blk}.altup_correct_scale.weight"
    g.fact(scale)
    entering = g.add(Op.CHANNEL_SCALE, (corrected[active],), (scale,), f"{blk}.altup_correct_scale")
    added = from_per_layer(g, h, entering, layer)
    streams = corrected[0]
    for value in corrected[1:]:
        value = g.add(Op.ADD, (value, added), label=f"{blk}.per_layer_residual")
        streams = g.concat(streams, value, f"{blk}.altup")
    return streams


def _merged(g: GraphBuilder, h: Hparams, streams: Ref) -> Ref:
    """The mean of all values, the others projected and as large as the first."""
    count, label = h.extra["altup"], "altup_unembd_proj"
    first = _one(g, h, streams, 0, label)
    others = g.heads(g.split(streams, h.width, count * h.width, label), count - 1, label)
    others = g.experts(others, _each(g, h, first), label)
    others = g.flat(g.add(Op.MATCH_RMS, (others, first), label=label, least=_LEAST), label)
    total = first
    for number in range(count - 1):
        total = g.add(Op.ADD, (total, _one(g, h, others, number, label)), label=label)
    return g.scale(total, 1.0 / count, label)
