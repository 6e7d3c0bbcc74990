"""Adapters attach to a graph by rewriting it: one LORA node per pair, after the weight scale and before the bias; then,
if any of them is DoRA's, one node that takes the rows to their lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from loragraft.adapters.dora import weight_factors
from loragraft.adapters.lora import Adapter, LoraPair
from loragraft.errors import AdapterError, GraphError
from loragraft.formats.gguf.scales import scale_of
from loragraft.formats.source import TensorSource
from loragraft.formats.views import float_rows, in_memory
from loragraft.graph.chains import Chain, Stage, dora_scale_of, find_chains, with_epilogues
from loragraft.graph.ops import Graph, Node, TensorFact

Floats = npt.NDArray[np.float32]


class RowFactors:
    """DoRA's m / ||W + s B A|| of every pair (`adapters.dora`), each worked out once: it depends on the pair and its
    weight alone, neither on strengths nor on other adapters."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[LoraPair, Floats]] = {}

    def of(self, pair: LoraPair, weight: TensorSource, scales: Floats | None) -> Floats:
        """float32 [out] or [E, out]."""
        if id(pair) not in self._known:  # the pair is kept, and with it its id
            self._known[id(pair)] = pair, weight_factors(weight, scales, pair)
        return self._known[id(pair)][1]

    def forget(self, adapter: Adapter) -> None:
        for pair in adapter.pairs.values():
            self._known.pop(id(pair), None)


def attach(
    graph: Graph,
    adapters: Sequence[tuple[Adapter, float]],
    weights: Mapping[str, TensorSource | Floats],
    factors: RowFactors | None = None,
) -> tuple[Graph, dict[str, Floats]]:
    """The graph with every pair of every adapter in it, and the adapters' tensors (float32) by name.

    Each adapter comes with the user's factor, which multiplies the pair's own scale. `weights` are the graph's; DoRA
    reads those that it adapts. A pair that targets no linear of the graph, or does not fit it, is an AdapterError
    naming it: nothing is skipped, but in a slice what targets the rest of its model. `factors` are kept from one call
    to the next. A pair for `output.weight` changes the logits only, one for `token_embd.weight` the
    embedding only, tied or not, as in PEFT.
    """
    chains = {chain.target: chain for chain in find_chains(graph)}
    factors = factors or RowFactors()
    if adapters and any(chain.at(Stage.LORA) for chain in chains.values()):
        raise GraphError("graph", "has adapters already", hint="attach them all at once")
    epilogues: dict[str, _Epilogue] = {}
    for number, (adapter, factor) in enumerate(adapters):
        if adapter.arch is not None and adapter.arch != graph.arch:
            raise AdapterError(
                adapter.path, "made for another architecture", found=adapter.arch, expected=graph.arch
            )
        _check_adds(adapter)
        for target, pair in adapter.pairs.items():
            chain = chains.get(target)
            if chain is None and target in graph.elsewhere:
                continue
            if chain is None:
                raise AdapterError(
                    adapter.path,
                    f"targets {target}, which is no linear layer of this model",
                    hint=f"the model has {len(chains)} layers that take adapters, such as {next(iter(chains))}",
                )
            _check_fit(adapter, pair, chain, graph)
            own = epilogues.setdefault(target, _Epilogue(graph, chain, weights, factors))
            own.add(adapter, pair, factor, number)
    attached = with_epilogues(graph, {own.chain.product: own.steps() for own in epilogues.values()})
    tensors = {name: array for own in epilogues.values() for name, array in own.tensors.items()}
    facts = {name: TensorFact(array.shape, "F32") for name, array in tensors.items()}
    return replace(attached, tensors={**graph.tensors, **facts}), tensors


class _Epilogue:
    """The adapters of one linear, in the order given.

    Adapter i makes of the weight W_i = h_i W_{i-1} + f_i g_i s_i B_i A_i, where f_i is the user's factor and
    h_i = g_i = 1; but for DoRA g_i = m_i / ||W + s_i B_i A_i|| and h_i = 1 + f_i (g_i - 1), row by row, which goes the
    part f_i of the way to g_i (W_{i-1} + s_i B_i A_i). With P_i = h_1 ... h_i that is P_n (W + sum_i f_i g_i / P_i s_i
    B_i A_i): LORA nodes whose B has its rows multiplied by g_i / P_i (1 for a single DoRA at f = 1), and one DORA_SCALE
    node, P_n.
    """

    def __init__(
        self,
        graph: Graph,
        chain: Chain,
        weights: Mapping[str, TensorSource | Floats],
        factors: RowFactors,
    ) -> None:
        self.chain, self.tensors = chain, dict[str, Floats]()
        self._graph, self._weights, self._known = graph, weights, factors
        self._loras: list[Node] = []
        self._lengths: Floats | None = None  # P_i, [out] or [E, out]; None: 1

    def add(self, adapter: Adapter, pair: LoraPair, factor: float, number: int) -> None:
        b, factors = pair.b, None
        if pair.magnitude is not None:
            factors = self._factors(adapter, pair)
            lengths = (
                factors if factor == 1 else np.float32(1) + np.float32(factor) * (factors - np.float32(1))
            )
            self._lengths = (
                lengths if self._lengths is None else np.asarray(self._lengths * lengths, np.float32)
            )
        if self._lengths is not None and self._lengths is not factors:
            if not self._lengths.all():
                raise AdapterError(
                    adapter.path,
                    f"cannot be put on {pair.target} at run time, where DoRA gives a row the length 0",
                    found=f"row {int(np.argmin(np.abs(self._lengths)))}",
                    hint="merge the adapters instead",
                )
            ratio = np.float32(1) / self._lengths if factors is None else factors / self._lengths
            b = np.asarray(b * ratio[..., None], np.float32)
        names = f"{pair.target}.lora_a.{number}", f"{pair.target}.lora_b.{number}"
        self.tensors[names[0]], self.tensors[names[1]] = pair.a, b
        inputs = (self.chain.product, *self._graph.nodes[self.chain.product].inputs)
        attrs = {"scale": float(pair.scale * factor)}
        op = self.chain.family.ops[Stage.LORA]
        self._loras.append(Node(op, inputs, names, attrs, self.chain.base))

    def steps(self) -> list[Node]:
        """All nodes of the epilogue, in order."""
        chain, nodes = self.chain, self._graph.nodes
        staged = [(stage, nodes[index]) for index, stage in zip(chain.nodes, chain.stages, strict=True)][1:]
        added = list(self._loras)
        if self._lengths is not None:
            name = dora_scale_of(chain.target)
            self.tensors[name] = self._lengths
            inputs = (chain.product, *nodes[chain.product].inputs[1:])
            added.append(Node(chain.family.ops[Stage.DORA_SCALE], inputs, (name,), {}, chain.base))
        before = [node for stage, node in staged if stage <= Stage.LORA]
        return [*before, *added, *(node for stage, node in staged if stage > Stage.LORA)]

    def _factors(self, adapter: Adapter, pair: LoraPair) -> Floats:
        if Stage.DORA_SCALE not in self.chain.family.ops:
            raise AdapterError(
                adapter.path, f"DoRA of {pair.target} is not honoured", found=self.chain.family.name
            )
        scale = scale_of(self.chain.weight, self._graph.tensors)
        scales = None if scale is None else _values(self._weights[scale]).reshape(-1)
        weight = self._weights[self.chain.weight]
        source = weight if isinstance(weight, TensorSource) else in_memory(self.chain.weight, weight)
        return self._known.of(pair, source, scales)


def _check_adds(adapter: Adapter) -> None:
    """A graph takes what is added to a product; what multiplies the weight has to be merged."""
    if adapter.transforms:
        target, transform = next(iter(adapter.transforms.items()))
        raise AdapterError(
            adapter.path,
            f"multiplies weights ({len(adapter.transforms)}, such as {target}), which a model that runs cannot",
            found="factors" if transform.rotation is None else "a rotation of the inputs",
            expected="pairs that are added",
            hint=f"merge it instead: loragraft merge BASE.gguf --lora {adapter.path} -o MERGED.gguf",
        )


def _values(tensor: TensorSource | Floats) -> Floats:
    if isinstance(tensor, TensorSource):
        return float_rows(tensor.rows(0, tensor.n_rows), tensor.type)
    return tensor


def _check_fit(adapter: Adapter, pair: LoraPair, chain: Chain, graph: Graph) -> None:
    rows = graph.tensors[chain.weight].shape
    if len(rows) == 1:
        rows = (1, *rows)
    found = (*pair.b.shape[:-1], pair.a.shape[-1])
    ranks = pair.a.shape[-2], pair.b.shape[-1]
    lengths = rows[:-1] if pair.magnitude is None else pair.magnitude.shape
    if found != rows or pair.a.shape[:-2] != rows[:-2] or ranks[0] != ranks[1] or lengths != rows[:-1]:
        raise AdapterError(
            adapter.path,
            f"the pair for {pair.target} does not fit the model",
            found=f"A {pair.a.shape}, B {pair.b.shape}",
            expected=f"a delta of shape {rows}",
        )
