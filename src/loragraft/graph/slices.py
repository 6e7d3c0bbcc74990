"""Slices of a graph: some layers of a model as a graph of their own, cut where only the residual stream passes.

A slice is verified by the same law and run by the same backends. What works layer by layer prepares one layer's slice
over that layer's weights, so that memory does not grow with the model.
"""

from __future__ import annotations

from dataclasses import replace

from loragraft.errors import GraphError
from loragraft.formats.gguf.scales import scale_of
from loragraft.graph.chains import find_chains
from loragraft.graph.ops import Graph, Node, Op
from loragraft.graph.spec import value_shapes


def slice_graph(graph: Graph, first: int = 0, last: int | None = None) -> Graph:
    """The part of `graph` from cut `first` to cut `last`, or to the logits if that is None.

    From cut 0 it starts with the tokens, embedding included; from another it starts with `HIDDEN`, which the caller of
    the program gives. A slice that ends at a cut gives all rows [T, d], one that ends at the logits the wanted rows.
    Its tensors are those that its nodes name. Raises GraphError for cuts that are not there, or where another float
    value than the residual stream crosses the cut.
    """
    count = len(graph.cuts)
    if last is None:
        legal, ends = 0 <= first < count, f"0 to {count - 1}"
    else:
        legal, ends = 0 <= first < last < count, f"two of 0 to {count - 1}, in order"
    if not legal:
        raise GraphError("graph", "no such slice", found=f"cut {first} to {last}", expected=ends)
    start = graph.cuts[first] if first else None
    output = graph.output if last is None else graph.cuts[last]
    nodes, moved = _copied(graph, start, output, keep_last=last is None)
    inner = graph.cuts[first : None if last is None else last + 1]
    cuts = tuple(0 if index == start else moved[index] for index in inner)
    part = replace(graph, nodes=tuple(nodes), output=moved[output], cuts=cuts)
    return _with_own_tensors(part, graph)


def _copied(
    graph: Graph, start: int | None, output: int, *, keep_last: bool
) -> tuple[list[Node], dict[int, int]]:
    """The nodes that `output` needs, and where each old one went. The value of `start` is given from outside."""
    needed = _needed(graph, start, output)
    nodes: list[Node] = []
    moved: dict[int, int] = {}
    if start is not None:
        (width,) = value_shapes(graph)[start]
        nodes.append(Node(Op.HIDDEN, attrs={"width": width}, label="hidden"))
        moved[start] = 0
        selects = any(node.op is Op.LAST for node in graph.nodes)
        if keep_last and selects and not any(graph.nodes[index].op is Op.LAST for index in needed):
            nodes.append(
                Node(Op.LAST, (0,), label="last")
            )  # it lies before the cut, where all rows enter now
            moved[start] = 1
    for index in sorted(needed):
        node = graph.nodes[index]
        if node.op is Op.LAST and not keep_last:
            moved[index] = moved[node.inputs[0]]
            continue
        nodes.append(replace(node, inputs=tuple(moved[source] for source in node.inputs)))
        moved[index] = len(nodes) - 1
    return nodes, moved


def _needed(graph: Graph, start: int | None, output: int) -> set[int]:
    needed: set[int] = set()
    waiting = [output]
    while waiting:
        index = waiting.pop()
        if index == start or index in needed:
            continue
        needed.add(index)
        waiting += graph.nodes[index].inputs
    if start is not None:
        for index in sorted(needed):
            node = graph.nodes[index]
            if index < start and node.op not in (Op.TOKENS, Op.POSITIONS):
                raise GraphError(
                    node.label or "graph",
                    "its value crosses the cut; only the residual stream may",
                    found=f"{node.op}, node {index}",
                    expected=f"nodes after {start}",
                )
    return needed


def _with_own_tensors(part: Graph, whole: Graph) -> Graph:
    """`part` with the tensors that it names. The scale of a weight is one of them, named or not: that it is not
    forgotten is for `graph.spec` to see."""
    chains = find_chains(part)
    names = {name for node in part.nodes for name in node.weights}
    names |= {scale for chain in chains if (scale := scale_of(chain.weight, whole.tensors))}
    here = {chain.target for chain in chains}
    others = {chain.target for chain in find_chains(whole)} - here
    return replace(
        part,
        tensors={name: fact for name, fact in whole.tensors.items() if name in names},
        unused=frozenset(),
        elsewhere=whole.elsewhere | others,
    )
