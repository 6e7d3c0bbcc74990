"""Adapters attach to a graph by rewriting it: one LORA node per pair, after the weight scale and before the bias; then,
if any of them is DoRA's or multiplies rows, one node that takes the rows to their lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from loragraft.adapters.dora import weight_factors
from loragraft.adapters.lora import Adapter, LoraPair
from loragraft.adapters.transform import Transform
from loragraft.arrays import Floats
from loragraft.errors import AdapterError, GraphError
from loragraft.formats.gguf.scales import scale_of
from loragraft.formats.source import TensorSource
from loragraft.formats.views import float_rows, in_memory
from loragraft.graph.chains import DENSE, Chain, Stage, dora_scale_of, find_chains, with_epilogues
from loragraft.graph.ops import Graph, Node, Op, TensorFact


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
    """The graph with every pair and factor of every adapter in it, and the adapters' tensors (float32) by name.

    Each adapter comes with the user's factor, which multiplies the pair's own scale. `weights` are the graph's; DoRA
    reads those that it adapts. A pair that targets no linear of the graph, or does not fit it, is an AdapterError
    naming it: nothing is skipped, but in a slice what targets the rest of its model. `factors` are kept from one call
    to the next. Factors of columns are honoured where a product feeds the layer, whose other side's rows they scale as
    well (a gated feed-forward); rotations are not. A pair for `output.weight` changes the logits only, one for
    `token_embd.weight` the embedding only, tied or not, as in PEFT."""
    chains: dict[str, list[Chain]] = {}
    for chain in find_chains(graph):
        chains.setdefault(chain.target, []).append(
            chain
        )  # several where a layer multiplies by one weight again
    factors = factors or RowFactors()
    if adapters and any(chain.at(Stage.LORA) for several in chains.values() for chain in several):
        raise GraphError("graph", "has adapters already", hint="attach them all at once")
    epilogues: dict[int, _Epilogue] = {}  # by the product
    for number, (adapter, factor) in enumerate(adapters):
        if adapter.arch is not None and adapter.arch != graph.arch:
            raise AdapterError(
                adapter.path, "made for another architecture", found=adapter.arch, expected=graph.arch
            )
        for target in dict.fromkeys([*adapter.pairs, *adapter.transforms]):
            if target not in chains and target in graph.elsewhere:
                continue
            if target not in chains:
                raise AdapterError(
                    adapter.path,
                    f"targets {target}, which is not a linear layer of this model",
                    hint=f"the model has {len(chains)} layers that take adapters, such as {next(iter(chains))}",
                )
            for chain in chains[target]:
                own = epilogues.setdefault(chain.product, _Epilogue(graph, chain, weights, factors))
                if target in adapter.pairs:
                    _check_fit(adapter, adapter.pairs[target], chain, graph)
                    own.add(adapter, adapter.pairs[target], factor, number)
                if target not in adapter.transforms:
                    continue
                transform = adapter.transforms[target]
                before = _before(adapter, transform, chain, graph, chains)
                own.multiply(adapter, transform, factor, number)
                if before is not None:
                    feeding = _Epilogue(graph, before, weights, factors)
                    epilogues.setdefault(before.product, feeding).scale_result(transform, factor, number)
    attached = with_epilogues(graph, {product: own.steps() for product, own in epilogues.items()})
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

    Factors of rows l_i (`adapters.transform`) are h_i = 1 + f_i (l_i - 1) without a pair: a pair of zeros stands for
    them, so that every adapter that changes the layer has one. Factors of columns are had by scaling what enters the
    layer, for all of its adapters, so none may come after them that adds a pair.
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
        self._loras: dict[int, Node] = {}  # by the adapter's number
        self._touched: dict[int, None] = {}  # adapters that change the layer, in order
        self._lengths: Floats | None = None  # P_i, [out] or [E, out]; None: 1
        self._columns = False  # whether what enters the layer is scaled
        self._result: Floats | None = None  # of the result as a whole, [out], for the layer behind it

    def add(self, adapter: Adapter, pair: LoraPair, factor: float, number: int) -> None:
        b, factors = pair.b, None
        if pair.magnitude is not None:
            factors = self._factors(adapter, pair)
            lengths = _part_of_the_way(factors, factor)
            self._lengths = _times(self._lengths, lengths)
        if self._columns:
            raise AdapterError(
                adapter.path,
                f"adds to {pair.target}, whose inputs an adapter before it scales",
                expected="the one that scales inputs last",
                hint="name it last, or merge the adapters: loragraft merge BASE --lora A --lora B -o MERGED.gguf",
            )
        if self._lengths is not None and self._lengths is not factors:
            if not self._lengths.all():
                raise AdapterError(
                    adapter.path,
                    f"cannot be put on {pair.target} at run time, where another adapter gives a row the length 0",
                    found=f"row {int(np.argmin(np.abs(self._lengths)))}",
                    hint="merge the adapters instead: loragraft merge BASE --lora A --lora B -o MERGED.gguf",
                )
            ratio = np.float32(1) / self._lengths if factors is None else factors / self._lengths
            b = np.asarray(b * ratio[..., None], np.float32)
        self._add_node(number, pair.a, b, float(pair.scale * factor))

    def _add_node(self, number: int, a: Floats, b: Floats, scale: float) -> None:
        target, product = self.chain.target, self.chain.product
        names = f"{target}.lora_a.{number}", f"{target}.lora_b.{number}"
        self.tensors[names[0]], self.tensors[names[1]] = a, b
        inputs = (product, *self._graph.nodes[product].inputs)
        op = self.chain.family.ops[Stage.LORA]
        self._loras[number] = Node(op, inputs, names, {"scale": scale}, self.chain.base)

    def multiply(self, adapter: Adapter, transform: Transform, factor: float, number: int) -> None:
        """Rows by the factors of `transform`; columns are noted, as what enters the layer is scaled by them."""
        self._touched[number] = None
        if transform.lengths is not None:
            if Stage.DORA_SCALE not in self.chain.family.ops:
                raise AdapterError(
                    adapter.path,
                    f"factors of rows of {self.chain.target} are not honoured at run time",
                    found=self.chain.family.name,
                    hint=_merge_instead(adapter),
                )
            self._lengths = _times(self._lengths, _part_of_the_way(transform.lengths, factor))
        if transform.columns is not None:
            self._columns = True

    def scale_result(self, transform: Transform, factor: float, number: int) -> None:
        """The layer's result by what scales the columns of the layer behind it, whatever is added to it later."""
        assert transform.columns is not None
        self._touched[number] = None
        self._result = _times(self._result, _part_of_the_way(transform.columns, factor))

    def steps(self) -> list[Node]:
        """All nodes of the epilogue, in order."""
        chain, nodes = self.chain, self._graph.nodes
        staged = [(stage, nodes[index]) for index, stage in zip(chain.nodes, chain.stages, strict=True)][1:]
        out, columns = (1, *self._graph.tensors[chain.weight].shape)[-2:]
        for number in self._touched.keys() - self._loras.keys():
            self._add_node(number, np.zeros((1, columns), np.float32), np.zeros((out, 1), np.float32), 1.0)
        added = [self._loras[number] for number in sorted(self._loras)]
        lengths = self._lengths if self._result is None else _times(self._lengths, self._result)
        if lengths is not None:
            name = dora_scale_of(chain.target)
            self.tensors[name] = lengths
            inputs = (chain.product, *nodes[chain.product].inputs[1:])
            added.append(Node(chain.family.ops[Stage.DORA_SCALE], inputs, (name,), {}, chain.base))
        before = [node for stage, node in staged if stage <= Stage.LORA]
        return [*before, *added, *(node for stage, node in staged if stage > Stage.LORA)]

    def _factors(self, adapter: Adapter, pair: LoraPair) -> Floats:
        if Stage.DORA_SCALE not in self.chain.family.ops:
            raise AdapterError(
                adapter.path, f"DoRA of {pair.target} is not supported", found=self.chain.family.name
            )
        scale = scale_of(self.chain.weight, self._graph.tensors)
        scales = None if scale is None else _values(self._weights[scale]).reshape(-1)
        weight = self._weights[self.chain.weight]
        source = weight if isinstance(weight, TensorSource) else in_memory(self.chain.weight, weight)
        return self._known.of(pair, source, scales)


def _before(
    adapter: Adapter, transform: Transform, chain: Chain, graph: Graph, chains: Mapping[str, Sequence[Chain]]
) -> Chain | None:
    """The layer whose rows stand for the columns that `transform` scales; None if it scales none.

    That is up in down(act(gate x) * (up x)): the factors of down's columns multiply the product, and so one of its
    sides."""
    out, columns = (1, *graph.tensors[chain.weight].shape)[-2:]
    if transform.rotation is not None:
        raise AdapterError(
            adapter.path,
            f"turns the inputs of {chain.target}, which a model that runs cannot",
            found=type(transform.rotation).__name__.lower(),
            expected="pairs, or factors of rows",
            hint=_merge_instead(adapter),
        )
    sizes = [len(own) for own in (transform.lengths, transform.columns) if own is not None]
    expected = [
        size for own, size in ((transform.lengths, out), (transform.columns, columns)) if own is not None
    ]
    if len(graph.tensors[chain.weight].shape) != 2 or sizes != expected:
        raise AdapterError(
            adapter.path, f"its factors for {chain.target} do not fit", found=sizes, expected=(out, columns)
        )
    if transform.columns is None:
        return None
    source = graph.nodes[chain.product].inputs[0]
    users = [index for index, node in enumerate(graph.nodes) if source in node.inputs]
    sides = (
        graph.nodes[source].inputs if graph.nodes[source].op is Op.MUL and users == [chain.product] else ()
    )
    for own in (chain for several in chains.values() for chain in several):
        alone = own.result in sides and [
            i for i, node in enumerate(graph.nodes) if own.result in node.inputs
        ] == [source]
        if alone and sides.count(own.result) == 1 and own.family is DENSE and not own.at(Stage.BIAS):
            return own
    raise AdapterError(
        adapter.path,
        f"scales the inputs of {chain.target}, which a model that runs can only behind a gate without a bias",
        found=f"{graph.nodes[source].op} before it",
        hint=_merge_instead(adapter),
    )


def _part_of_the_way(factors: Floats, strength: float) -> Floats:
    if strength == 1:
        return factors
    return np.asarray(np.float32(1) + np.float32(strength) * (factors - np.float32(1)), np.float32)


def _times(product: Floats | None, factors: Floats) -> Floats:
    return factors if product is None else np.asarray(product * factors, np.float32)


def _merge_instead(adapter: Adapter) -> str:
    return f"merge it instead: loragraft merge BASE --lora {adapter.path} -o MERGED.gguf"


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
