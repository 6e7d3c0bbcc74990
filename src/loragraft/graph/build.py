"""Builds graphs: the one way to multiply by a weight, so that no architecture can get a linear's epilogue wrong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from loragraft.errors import FormatError
from loragraft.formats.gguf.scales import scale_of
from loragraft.graph.ops import Graph, Node, Op, TensorFact

Ref = int
"""The index of an earlier node."""


class GraphBuilder:
    """Collects nodes over the tensors that a model file has.

    `linear`, `experts` and `embed` look up which companions the file holds for a weight (`.scale`, `.input_scale`,
    `.bias`) and always build product, weight scale, bias, architectural scale in this order; `graph.lora.attach`
    later puts adapters between weight scale and bias.
    """

    def __init__(self, arch: str, tensors: Mapping[str, TensorFact]) -> None:
        self.arch = arch
        self.tensors = tensors
        self._nodes: list[Node] = []
        self._cuts: list[Ref] = []
        self.kept: dict[str, Ref] = {}
        """Values that later parts of a graph take up again, by names that these agree on."""

    def add(
        self, op: Op, inputs: Iterable[Ref] = (), weights: Iterable[str] = (), label: str = "", **attrs: Any
    ) -> Ref:
        """Append one node; attributes are given as keywords."""
        self._nodes.append(Node(op, tuple(inputs), tuple(weights), attrs, label))
        return len(self._nodes) - 1

    def has(self, name: str) -> bool:
        return name in self.tensors

    def fact(self, name: str) -> TensorFact:
        """The fact of a tensor that the architecture needs; raises FormatError if the file lacks it."""
        try:
            return self.tensors[name]
        except KeyError:
            raise FormatError(
                name,
                f"the model lacks this tensor, which architecture {self.arch} needs",
                found=f"{len(self.tensors)} other tensors",
                hint="is the file complete?",
            ) from None

    def _if_present(self, *names: str) -> tuple[str, ...]:
        return tuple(name for name in names if name in self.tensors)

    def tokens(self) -> Ref:
        return self.add(Op.TOKENS, label="tokens")

    def embed_positions(self, base: str = "position_embd") -> Ref:
        """Rows of `<base>.weight` [positions, d], by the tokens' positions."""
        most = self.fact(f"{base}.weight").shape[0]
        return self.embed(self.add(Op.POSITIONS, label="positions", most=most), base)

    def embed(self, ids: Ref, base: str = "token_embd", *, arch_scale: float | None = None) -> Ref:
        """Rows of `<base>.weight`, fully dequantized: [T, d]."""
        self.fact(f"{base}.weight")
        x = self.add(Op.EMBED, (ids,), (f"{base}.weight",), base)
        if scale := scale_of(f"{base}.weight", self.tensors):
            x = self.add(Op.EMBED_SCALE, (x,), (scale,), base)
        return self._arch_scale(x, base, arch_scale)

    def linear(
        self, x: Ref, base: str, *, weight_of: str | None = None, arch_scale: float | str | None = None
    ) -> Ref:
        """The linear layer `base` (`blk.0.attn_q`): GEMM, weight scale, bias, architectural scale.

        `weight_of` names the layer whose weight is used instead (tied output: `token_embd`); scales belong to the
        weight, the bias to `base`. `arch_scale` is a number, or the name of a tensor [1].
        """
        stored = weight_of or base
        self.fact(f"{stored}.weight")
        weights = (f"{stored}.weight", *self._if_present(f"{stored}.input_scale"))
        y = self.add(Op.MATMUL, (x,), weights, base)
        if scale := scale_of(f"{stored}.weight", self.tensors):
            y = self.add(Op.WEIGHT_SCALE, (y,), (scale,), base)
        if self.has(f"{base}.bias"):
            y = self.add(Op.BIAS, (y,), (f"{base}.bias",), base)
        return self._arch_scale(y, base, arch_scale)

    def experts(self, x: Ref, ids: Ref, base: str) -> Ref:
        """The routed linear `base` (`blk.0.ffn_up_exps`) for the experts `ids` [T, k]: [T, k, out]."""
        self.fact(f"{base}.weight")
        weights = (f"{base}.weight", *self._if_present(f"{base}.input_scale"))
        y = self.add(Op.EXPERTS_MATMUL, (x, ids), weights, base)
        if scale := scale_of(f"{base}.weight", self.tensors):
            y = self.add(Op.EXPERTS_WEIGHT_SCALE, (y, ids), (scale,), base)
        if self.has(f"{base}.bias"):
            y = self.add(Op.EXPERTS_BIAS, (y, ids), (f"{base}.bias",), base)
        return y

    def _arch_scale(self, y: Ref, base: str, scale: float | str | None) -> Ref:
        if scale is None or scale == 1.0:
            return y
        if isinstance(scale, str):
            return self.add(Op.ARCH_SCALE, (y,), (scale,), base)
        return self.add(Op.ARCH_SCALE, (y,), (), base, value=float(scale))

    def rms_norm(self, x: Ref, base: str, eps: float) -> Ref:
        weight = base if self.has(base) else f"{base}.weight"  # Falcon-H1 has `blk.0.ffn_norm`
        self.fact(weight)
        return self.add(Op.RMS_NORM, (x,), (weight,), base, eps=eps)

    def plain_rms_norm(self, x: Ref, group: int, eps: float, label: str) -> Ref:
        """Without a weight, over each `group` elements."""
        return self.add(Op.RMS_NORM, (x,), label=label, eps=eps, group=group)

    def soft_cap(self, x: Ref, cap: float | None, label: str) -> Ref:
        """cap * tanh(x / cap); x itself without a cap."""
        return x if cap is None else self.add(Op.SOFT_CAP, (x,), label=label, cap=float(cap))

    def clamp(self, x: Ref, limit: float | None, label: str) -> Ref:
        """x within -limit and limit; x itself without a limit."""
        return x if limit is None else self.add(Op.CLAMP, (x,), label=label, low=-limit, high=limit)

    def layer_norm(self, x: Ref, base: str, eps: float) -> Ref:
        self.fact(f"{base}.weight")
        return self.add(
            Op.LAYER_NORM, (x,), (f"{base}.weight", *self._if_present(f"{base}.bias")), base, eps=eps
        )

    def split(self, x: Ref, start: int, stop: int, label: str, group: int | None = None) -> Ref:
        """Elements [start, stop) of each row, or of each `group` elements."""
        if group is None:
            return self.add(Op.SPLIT, (x,), label=label, start=start, stop=stop)
        return self.add(Op.SPLIT, (x,), label=label, start=start, stop=stop, group=group)

    def heads(self, x: Ref, count: int, label: str) -> Ref:
        """[T, count, n] of [T, count * n]."""
        return self.add(Op.RESHAPE, (x,), label=label, parts=count)

    def flat(self, x: Ref, label: str) -> Ref:
        """[T, n] of any value: the way back."""
        return self.add(Op.RESHAPE, (x,), label=label, parts=0)

    def concat(self, a: Ref, b: Ref, label: str) -> Ref:
        """The elements of a and then those of b."""
        return self.add(Op.CONCAT, (a, b), label=label)

    def scale(self, x: Ref, factor: float, label: str) -> Ref:
        """x times a factor that the architecture defines; x itself if that is 1."""
        return x if factor == 1.0 else self.add(Op.ARCH_SCALE, (x,), label=label, value=float(factor))

    def cut(self, x: Ref) -> None:
        """Mark x as the residual stream before a layer (or before the output's norm): the graph may be cut there."""
        self._cuts.append(x)

    def finish(self, output: Ref, unused: Iterable[str] = ()) -> Graph:
        """The graph; `unused` names tensors of the file that the architecture knowingly does without."""
        return Graph(
            self.arch,
            tuple(self._nodes),
            output,
            self.tensors,
            cuts=tuple(self._cuts),
            unused=frozenset(unused),
        )
