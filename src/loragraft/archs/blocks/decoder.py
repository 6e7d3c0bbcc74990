"""Whole decoders: how a layer's parts stand in the residual stream, from the embedding to the logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from loragraft.archs.blocks.norms import Norm, bare_layer_norm, layer_norm, rms_norm, rms_norm_if_there
from loragraft.archs.hparams import Hparams
from loragraft.graph.build import GraphBuilder, Ref
from loragraft.graph.ops import Graph, Op, TensorFact

Part = Callable[[GraphBuilder, Hparams, Ref, int], Ref]
"""(builder, sizes, the value before it, the layer) -> what it adds to the residual stream"""
Begin = Callable[[GraphBuilder, Hparams, Ref, Ref], None]
"""(builder, sizes, the tokens, their embedding): what is made before the first layer, for `GraphBuilder.kept`"""


@dataclass(frozen=True, slots=True)
class Branch:
    """Something that a layer adds to the residual stream: post(part(pre(x))). The norms go by the names of their
    tensors in a layer, None without one."""

    part: Part
    name: str
    """What its sum is called: `<name>_residual`."""
    pre: str | None
    post: str | None = None


def by_mixer(**parts: Part) -> Part:
    """The part that a layer's `mixer` names."""
    return lambda g, h, x, layer: parts[h.layers[layer].mixer](g, h, x, layer)


def together(*parts: Part) -> Part:
    """The sum of parts that see the same value."""

    def part(g: GraphBuilder, h: Hparams, x: Ref, layer: int) -> Ref:
        total, *others = [one(g, h, x, layer) for one in parts]
        for other in others:
            total = g.add(Op.ADD, (total, other), label=f"blk.{layer}.mixed")
        return total

    return part


def by_feed_forward(**parts: Part) -> Part:
    """The part that a layer's `feed_forward` names: dense or experts."""
    return lambda g, h, x, layer: parts[h.layers[layer].feed_forward](g, h, x, layer)


def routed_if_there(dense: Part, experts: Part) -> Part:
    """Experts in the layers that have a router."""

    def part(g: GraphBuilder, h: Hparams, x: Ref, layer: int) -> Ref:
        routed = g.has(f"blk.{layer}.ffn_gate_inp.weight")
        return (experts if routed else dense)(g, h, x, layer)

    return part


@dataclass(frozen=True, slots=True)
class Decoder:
    """A decoder whose layers are `attention` and then `feed_forward`, each added to the residual stream; called with
    what a file says and holds, it builds the graph.

    Norms stand before both parts, as in Llama. `post_norms`: after them, too, under these names (Gemma 3), or instead,
    if `pre_norms` are None (OLMo 2). `parallel`: both parts see the same value (Falcon, Phi); with one norm for both if
    they have the same name. Without a `feed_forward`, a layer is `attention` alone (Nemotron-H). The output's weight is
    the embedding's if the file has no other.
    """

    attention: Part
    feed_forward: Part | None
    norm: Norm = rms_norm
    pre_norms: tuple[str | None, str | None] = ("attn_norm", "ffn_norm")
    post_norms: tuple[str | None, str | None] = (None, None)
    parallel: bool = False
    output_norm: str = "output_norm"
    """What the file calls the norm before the output: LFM2's has the name of a norm behind the embedding."""
    begin: Begin | None = None
    behind: Part | None = None
    """What becomes of the residual stream behind each layer."""
    unused: Callable[[Hparams, str], bool] = lambda h, name: False
    """Whether the architecture knowingly does without the tensor of this name."""

    def __call__(self, h: Hparams, tensors: Mapping[str, TensorFact]) -> Graph:
        g = GraphBuilder(h.arch, tensors)
        scale = None if h.embedding_scale == 1.0 else h.embedding_scale
        ids = g.tokens()
        x = g.embed(ids, arch_scale=scale)
        if self.begin is not None:
            self.begin(g, h, ids, x)
        if g.has("position_embd.weight"):
            x = g.add(Op.ADD, (x, g.embed_positions()), label="position_embd_sum")
        if g.has("token_embd_norm.weight") and self.output_norm != "token_embd_norm":
            x = self.norm(g, h, x, "token_embd_norm")
        last = len(h.layers) - h.predictors
        for layer in range(last):
            g.cut(x)
            x = self._parallel(g, h, x, layer) if self.parallel else self._in_turn(g, h, x, layer)
            x = x if self.behind is None else self.behind(g, h, x, layer)
        g.cut(x)
        x = self.norm(g, h, x, self.output_norm)
        tied = None if g.has("output.weight") else "token_embd"
        scale = None if h.logit_scale == 1.0 else h.logit_scale
        logits = g.linear(x, "output", weight_of=tied, arch_scale=scale)
        logits = g.soft_cap(logits, h.logit_softcap, "logit_softcap")
        behind = tuple(f"blk.{layer}." for layer in range(last, len(h.layers)))
        return g.finish(logits, [name for name in tensors if self.unused(h, name) or name.startswith(behind)])

    @property
    def _branches(self) -> tuple[Branch, ...]:
        (before, then), (after, last) = self.pre_norms, self.post_norms
        mixes = Branch(self.attention, "attn", before, after)
        if self.feed_forward is None:
            return (mixes,)
        return mixes, Branch(self.feed_forward, "ffn", then, last)

    def _in_turn(self, g: GraphBuilder, h: Hparams, x: Ref, layer: int) -> Ref:
        for number, branch in enumerate(self._branches):
            if number and layer == len(h.layers) - h.predictors - 1:
                x = g.add(Op.LAST, (x,), label="last")
            added = self._value(g, h, branch, self._before(g, h, branch, x, layer), layer)
            x = g.add(Op.ADD, (x, added), label=f"blk.{layer}.{branch.name}_residual")
        if self.feed_forward is None and layer == len(h.layers) - h.predictors - 1:
            x = g.add(Op.LAST, (x,), label="last")
        return x

    def _parallel(self, g: GraphBuilder, h: Hparams, x: Ref, layer: int) -> Ref:
        normed: dict[str | None, Ref] = {}
        total = x
        for branch in self._branches:
            if branch.pre not in normed:
                normed[branch.pre] = self._before(g, h, branch, x, layer)
            added = self._value(g, h, branch, normed[branch.pre], layer)
            total = g.add(Op.ADD, (total, added), label=f"blk.{layer}.{branch.name}_residual")
        return g.add(Op.LAST, (total,), label="last") if layer == len(h.layers) - h.predictors - 1 else total

    def _before(self, g: GraphBuilder, h: Hparams, branch: Branch, x: Ref, layer: int) -> Ref:
        return x if branch.pre is None else self.norm(g, h, x, f"blk.{layer}.{branch.pre}")

    def _value(self, g: GraphBuilder, h: Hparams, branch: Branch, x: Ref, layer: int) -> Ref:
        added = branch.part(g, h, x, layer)
        if branch.post is not None:
            added = self.norm(g, h, added, f"blk.{layer}.{branch.post}")
        return g.scale(added, h.residual_scale, f"blk.{layer}.{branch.name}_scale")


__all__ = [
    "Branch",
    "Decoder",
    "Norm",
    "Part",
    "bare_layer_norm",
    "by_feed_forward",
    "by_mixer",
    "layer_norm",
    "rms_norm",
    "rms_norm_if_there",
    "routed_if_there",
    "together",
]
