"""The law of graphs. A graph that breaks a rule does not run: `Backend.prepare` calls `verify` first.

1. Nodes: inputs come earlier, weights exist, kinds, shapes and attributes are legal (graph/signatures.py); all rows and
   the wanted rows alone, which LAST leaves, are not mixed; every attention has a layer of its own and sees all rows.
2. Epilogue: GEMM, weight scale, LoRA, DoRA scale, bias, architectural scale, in this order; the weight's own scale
   exactly once if the file has one; LoRA on the linear's own input; the linear's own bias and DoRA scale.
3. Coverage: every tensor of the model and of the adapters reaches the output, or is declared unused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from loragraft.errors import GraphError
from loragraft.formats.gguf.scales import scale_of
from loragraft.graph.chains import FAMILIES, Chain, Stage, dora_scale_of, find_chains
from loragraft.graph.ops import RECURRENT, Graph, Op
from loragraft.graph.signatures import IllegalNode, check_node

#: Ops that mean something only in the epilogue of a product.
_EPILOGUE_ONLY = {
    op
    for family in FAMILIES.values()
    for stage, op in family.ops.items()
    if stage not in (Stage.PRODUCT, Stage.ARCH_SCALE)
}


_ALL_ROWS = RECURRENT | {Op.LAST, Op.ATTENTION, Op.ROPE}


def verify(graph: Graph) -> None:
    """Raises GraphError for the first rule that the graph breaks, naming the tensor, what was found and expected."""
    for violation in violations(graph):
        raise violation


def violations(graph: Graph) -> Iterator[GraphError]:
    """Every rule that the graph breaks. Rules of epilogue and coverage are not tried on ill-formed nodes."""
    nodes = list(_nodes(graph))
    yield from nodes
    if nodes:
        return
    chains = find_chains(graph)
    yield from _orphans(graph, chains)
    for chain in chains:
        yield from _order(graph, chain)
        yield from _ownership(graph, chain)
    yield from _coverage(graph)


def value_shapes(graph: Graph) -> list[tuple[int, ...]]:
    """The shape of every node's value without its first axis, the rows, in a graph whose nodes are legal."""
    shapes: list[tuple[int, ...]] = []
    kinds: list[str] = []
    for node in graph.nodes:
        given = "".join(kinds[source] for source in node.inputs)
        weights = [graph.tensors[name].shape for name in node.weights]
        kind, shape = check_node(node, given, [shapes[source] for source in node.inputs], weights)
        kinds.append(kind)
        shapes.append(shape)
    return shapes


def narrowed(graph: Graph) -> list[bool]:
    """Of every node, whether its value has the wanted rows alone: after LAST."""
    result: list[bool] = []
    for node in graph.nodes:
        result.append(node.op is Op.LAST or any(result[source] for source in node.inputs))
    return result


def _where(graph: Graph, index: int) -> str:
    node = graph.nodes[index]
    return f"{node.label or 'node'} ({node.op}, node {index})"


def _nodes(graph: Graph) -> Iterator[GraphError]:
    if not 0 <= graph.output < len(graph.nodes):
        yield GraphError(
            "graph", "the output is not a node", found=graph.output, expected=f"0 to {len(graph.nodes) - 1}"
        )
        return
    values: list[tuple[str, tuple[int, ...]]] = []
    layers: set[tuple[Op, int]] = set()
    for index, node in enumerate(graph.nodes):
        late = [source for source in node.inputs if not 0 <= source < index]
        if late:
            yield GraphError(_where(graph, index), "inputs must be earlier nodes", found=f"node {late[0]}")
            return
        missing = [name for name in node.weights if name not in graph.tensors]
        if missing:
            yield GraphError(_where(graph, index), "no such tensor", found=missing[0])
            return
        kinds = "".join(values[source][0] for source in node.inputs)
        shapes = [values[source][1] for source in node.inputs]
        try:
            values.append(
                check_node(node, kinds, shapes, [graph.tensors[name].shape for name in node.weights])
            )
        except IllegalNode as wrong:
            subject = f"{node.weights[0]}: {_where(graph, index)}" if node.weights else _where(graph, index)
            yield GraphError(subject, wrong.problem, found=wrong.found, expected=wrong.expected)
            return
        if node.op is Op.ATTENTION or node.op in RECURRENT:
            own = node.op, node.attrs["layer"]
            if own in layers:
                what = (
                    "two attentions share a cache"
                    if node.op is Op.ATTENTION
                    else f"two {node.op} share a state"
                )
                yield GraphError(_where(graph, index), what, found=f"layer {node.attrs['layer']}")
            layers.add(own)
    yield from _rows(graph)
    for cut in graph.cuts:
        if not 0 <= cut < len(values) or values[cut][0] != "f" or len(values[cut][1]) != 1:
            yield GraphError("graph", "a cut is not a value of the residual stream", found=f"node {cut}")
    kind, shape = values[graph.output]
    if kind != "f" or len(shape) != 1:
        yield GraphError(
            "graph", "the output is not a vector of logits", found=shape, expected="(vocabulary,)"
        )


def _rows(graph: Graph) -> Iterator[GraphError]:
    few = narrowed(graph)
    for index, node in enumerate(graph.nodes):
        if node.op in _EPILOGUE_ONLY:
            continue  # has to take what its product takes, which is a rule of its own
        mixed = len({few[source] for source in node.inputs}) > 1
        if mixed or (node.op in _ALL_ROWS and few[node.inputs[0]]):
            yield GraphError(
                _where(graph, index),
                "works on all rows",
                found="a value after LAST, which has the wanted rows alone",
            )


def _orphans(graph: Graph, chains: Sequence[Chain]) -> Iterator[GraphError]:
    """Epilogue ops that follow no product: applied to something else, or to a value that another node also uses."""
    owned = {index for chain in chains for index in chain.nodes}
    for index, node in enumerate(graph.nodes):
        if node.op in _EPILOGUE_ONLY and index not in owned:
            source = graph.nodes[node.inputs[0]]
            yield GraphError(
                node.weights[0],
                f"{node.op} must follow its product, and its value may have no other use",
                found=f"{node.op} after {source.op} ({source.label})",
            )


def _orders(chain: Chain, due: set[Stage]) -> tuple[str, str]:
    """The chain's order as found and as it must be, in words; the scales that are `due` once, others never."""
    legal = sorted([*(stage for stage in chain.stages if stage not in _SCALES), *due])
    return ", ".join(chain.family.words(chain.stages)), ", ".join(chain.family.words(legal))


_SCALES = {Stage.WEIGHT_SCALE, Stage.DORA_SCALE}


def _order(graph: Graph, chain: Chain) -> Iterator[GraphError]:
    scale = scale_of(chain.weight, graph.tensors)
    lengths = dora_scale_of(chain.target) in graph.tensors
    found, expected = _orders(chain, set([Stage.WEIGHT_SCALE] * bool(scale) + [Stage.DORA_SCALE] * lengths))

    def broken(problem: str) -> GraphError:
        return GraphError(chain.target, problem, found=found, expected=expected)

    if lengths and not chain.at(Stage.DORA_SCALE):
        yield broken("its DoRA scale is dropped")
    scales = len(chain.at(Stage.WEIGHT_SCALE))
    if scale and not scales:
        yield broken(f"its scale {scale} is dropped")
    elif scales > 1:
        yield broken("its weight scale is applied more than once")
    elif scales and not scale:
        yield broken("a weight scale is applied, but the model has none for it")
    for stage in (Stage.DORA_SCALE, Stage.BIAS, Stage.ARCH_SCALE):
        if len(chain.at(stage)) > 1:
            yield broken(f"its {stage} is applied more than once")
    for before, after in zip(chain.stages, chain.stages[1:], strict=False):
        if before > after:
            yield broken(f"{before} comes before {after}")
            break


def _ownership(graph: Graph, chain: Chain) -> Iterator[GraphError]:
    """Every companion must be the linear's own, and the adapters must see the linear's own input and experts."""
    head = graph.nodes[chain.product]
    for index, stage in zip(chain.nodes[1:], chain.stages[1:], strict=True):
        node = graph.nodes[index]
        match stage:
            case Stage.WEIGHT_SCALE:
                own = scale_of(chain.weight, graph.tensors)
                if own and node.weights != (own,):
                    yield GraphError(
                        chain.target, "scaled by another tensor's scale", found=node.weights[0], expected=own
                    )
            case Stage.BIAS:
                if node.weights != (f"{chain.base}.bias",):
                    yield GraphError(
                        chain.target,
                        "takes another linear's bias",
                        found=node.weights[0],
                        expected=f"{chain.base}.bias",
                    )
            case Stage.DORA_SCALE:
                if node.weights != (dora_scale_of(chain.target),):
                    yield GraphError(
                        chain.target,
                        "takes the DoRA scale of another weight",
                        found=node.weights[0],
                        expected=dora_scale_of(chain.target),
                    )
            case Stage.LORA:
                strangers = [name for name in node.weights if not name.startswith(f"{chain.target}.lora_")]
                if strangers:
                    yield GraphError(
                        chain.target,
                        "takes an adapter made for another weight",
                        found=strangers[0],
                        expected=f"{chain.target}.lora_a and .lora_b",
                    )
                if node.inputs[1:] != head.inputs:
                    yield GraphError(
                        chain.target,
                        "the adapter must see the linear's own input",
                        found=", ".join(_where(graph, source) for source in node.inputs[1:]),
                        expected=", ".join(_where(graph, source) for source in head.inputs),
                    )
            case Stage.ARCH_SCALE:
                if node.weights and node.weights[0] == scale_of(chain.weight, graph.tensors):
                    yield GraphError(
                        chain.target,
                        "its own weight scale is applied as an architectural scale",
                        found=node.weights[0],
                        hint="a weight scale belongs directly after the GEMM",
                    )
        if chain.family.name == "experts" and stage in (Stage.WEIGHT_SCALE, Stage.DORA_SCALE, Stage.BIAS):
            if node.inputs[-1] != head.inputs[1]:
                yield GraphError(chain.target, f"{stage} is for other experts than the product's")
            experts, rows = graph.tensors[chain.weight].shape[0], graph.tensors[node.weights[0]].shape[0]
            if rows != experts:
                yield GraphError(
                    chain.target, f"{stage} of a different number of experts", found=rows, expected=experts
                )


def _coverage(graph: Graph) -> Iterator[GraphError]:
    alive = {graph.output}
    for index in range(graph.output, -1, -1):
        if index in alive:
            alive.update(graph.nodes[index].inputs)
    used = {name for index in alive for name in graph.nodes[index].weights}
    for index in range(len(graph.nodes)):
        if index not in alive:
            yield GraphError(_where(graph, index), "its value never reaches the output")
    for name in graph.tensors:
        if name in used and name in graph.unused:
            yield GraphError(name, "declared unused, yet the graph uses it")
        if name not in used and name not in graph.unused:
            what = "adapter tensor" if ".lora_" in name else "tensor"
            yield GraphError(
                name,
                f"the graph of architecture {graph.arch} never uses this {what}",
                hint="ignoring it would change the model silently",
            )
