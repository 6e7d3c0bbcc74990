"""The plan of a graph: its nodes as steps, a linear layer and its whole epilogue being one, and where every value lies.

Layers that read the same x one after the other (q, k and v; gate and up) are one step, silu(gate) * up is one pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from loragraft.errors import UnsupportedError
from loragraft.graph.chains import EMBEDDING, EXPERTS, Chain, Stage, find_chains
from loragraft.graph.ops import Graph, Node, Op
from loragraft.graph.spec import narrowed, value_shapes


@dataclass(frozen=True, slots=True)
class LoraTerm:
    """gamma * B (A x), by the names of A and B."""

    a: str
    b: str
    gamma: float


@dataclass(frozen=True, slots=True)
class Linear:
    """arch_scale * (dora_scale * (scale * (W x) + LoRA) + bias); the kernel applies it in this order."""

    result: int
    weight: str
    input_scale: str | None
    scale: str | None
    loras: tuple[LoraTerm, ...]
    dora_scale: str | None
    bias: str | None
    arch_scale: str | float
    """A number, or the name of a tensor [1]."""


@dataclass(frozen=True, slots=True)
class LinearStep:
    """Layers that read the same x: one parallel loop for all."""

    linears: tuple[Linear, ...]
    x: int
    ids: int | None
    """The node that chooses experts; None for dense layers."""

    @property
    def results(self) -> tuple[int, ...]:
        return tuple(linear.result for linear in self.linears)

    @property
    def inputs(self) -> tuple[int, ...]:
        return (self.x,) if self.ids is None else (self.x, self.ids)


@dataclass(frozen=True, slots=True)
class EmbedStep:
    """arch_scale * (scale * W[ids] + LoRA)."""

    result: int
    by_position: bool
    """Whether the ids are the rows' positions, and not their tokens."""
    weight: str
    scale: str | None
    loras: tuple[LoraTerm, ...]
    arch_scale: str | float

    @property
    def results(self) -> tuple[int, ...]:
        return (self.result,)

    @property
    def inputs(self) -> tuple[int, ...]:
        return ()


@dataclass(frozen=True, slots=True)
class GatedStep:
    """silu(gate) * up in one pass."""

    result: int
    gate: int
    up: int

    @property
    def results(self) -> tuple[int, ...]:
        return (self.result,)

    @property
    def inputs(self) -> tuple[int, ...]:
        return (self.gate, self.up)


@dataclass(frozen=True, slots=True)
class NodeStep:
    """A node that stands alone."""

    result: int
    node: Node

    @property
    def results(self) -> tuple[int, ...]:
        return (self.result,)

    @property
    def inputs(self) -> tuple[int, ...]:
        return self.node.inputs


_GIVEN = (Op.TOKENS, Op.POSITIONS)
"""What a batch says of its rows; no step makes them."""

Step = LinearStep | EmbedStep | GatedStep | NodeStep


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value lies: `offset` floats a row into the program's memory, `width` elements a row; None: it is the
    output, which lies with the caller. `wanted`: it has the wanted rows alone."""

    offset: int | None
    width: int
    wanted: bool


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps in order, and the places of their values; `floats` of memory are needed for each row."""

    steps: tuple[Step, ...]
    places: Mapping[int, Place]
    floats: int
    output: int


def plan(graph: Graph) -> Plan:
    """The plan of a graph that `graph.spec` has verified: the epilogues' order is not looked at again."""
    steps = steps_of(graph)
    places, floats = _places(graph, steps)
    return Plan(tuple(steps), places, floats, graph.output)


def steps_of(graph: Graph) -> list[Step]:
    """The steps alone: the same, adapters aside, whatever adapters are in the graph."""
    chains = {chain.result: chain for chain in find_chains(graph)}
    covered = {index for chain in chains.values() for index in chain.nodes}
    gated = dict(_gated(graph))
    steps: list[Step] = []
    for index, node in enumerate(graph.nodes):
        if index in chains:
            steps.append(_chain(graph, chains[index]))
        elif index in gated:
            gate = gated[index]
            steps.append(GatedStep(index, graph.nodes[gate].inputs[0], node.inputs[1]))
        elif index not in covered and index not in gated.values() and node.op not in _GIVEN:
            steps.append(NodeStep(index, node))
    return list(_grouped(steps))


def _grouped(steps: list[Step]) -> Iterator[Step]:
    """Neighbouring linear layers of the same x, and the same experts, become one step."""
    waiting: LinearStep | None = None
    for step in steps:
        if not isinstance(step, LinearStep):
            if waiting is not None:
                yield waiting
                waiting = None
            yield step
        elif waiting is not None and waiting.inputs == step.inputs:
            waiting = LinearStep((*waiting.linears, *step.linears), step.x, step.ids)
        else:
            if waiting is not None:
                yield waiting
            waiting = step
    if waiting is not None:
        yield waiting


def _chain(graph: Graph, chain: Chain) -> LinearStep | EmbedStep:
    head = graph.nodes[chain.product]

    def one(stage: Stage) -> str | None:
        return next((graph.nodes[index].weights[0] for index in chain.at(stage)), None)

    arch: str | float = 1.0
    for index in chain.at(Stage.ARCH_SCALE):
        node = graph.nodes[index]
        arch = node.weights[0] if node.weights else float(node.attrs["value"])
    loras = tuple(
        LoraTerm(node.weights[0], node.weights[1], float(node.attrs["scale"]))
        for node in (graph.nodes[index] for index in chain.at(Stage.LORA))
    )
    if chain.family is EMBEDDING:
        ids = graph.nodes[head.inputs[0]].op
        if ids not in _GIVEN:
            raise UnsupportedError(chain.target, "this backend only embeds tokens and positions", found=ids)
        return EmbedStep(
            chain.result, ids is Op.POSITIONS, chain.weight, one(Stage.WEIGHT_SCALE), loras, arch
        )
    linear = Linear(
        result=chain.result,
        weight=chain.weight,
        input_scale=head.weights[1] if len(head.weights) > 1 else None,
        scale=one(Stage.WEIGHT_SCALE),
        loras=loras,
        dora_scale=one(Stage.DORA_SCALE),
        bias=one(Stage.BIAS),
        arch_scale=arch,
    )
    return LinearStep((linear,), head.inputs[0], head.inputs[1] if chain.family is EXPERTS else None)


def _gated(graph: Graph) -> Iterable[tuple[int, int]]:
    """(MUL, SILU) pairs of one shape where the SILU has no other use."""
    shapes = value_shapes(graph)
    uses: dict[int, int] = {graph.output: 1}
    for node in graph.nodes:
        for source in node.inputs:
            uses[source] = uses.get(source, 0) + 1
    for index, node in enumerate(graph.nodes):
        if node.op is not Op.MUL or node.inputs[0] == node.inputs[1]:
            continue
        first, second = node.inputs
        if graph.nodes[first].op is Op.SILU and uses[first] == 1 and shapes[first] == shapes[second]:
            yield index, first


_ALIGNED = 16  # floats


def _places(graph: Graph, steps: list[Step]) -> tuple[dict[int, Place], int]:
    """A place for every value, where those that live at the same time do not overlap; and the floats of all."""
    shapes, few = value_shapes(graph), narrowed(graph)
    last = {source: number for number, step in enumerate(steps) for source in step.inputs}
    places: dict[int, Place] = {}
    live: dict[int, tuple[int, int]] = {}  # offset and end, in floats
    floats = 0
    for number, step in enumerate(steps):
        for result in step.results:
            width = 1
            for size in shapes[result]:
                width *= size
            if result == graph.output:
                places[result] = Place(None, width, few[result])
                continue
            start = _gap(live, width)
            live[result] = start, start + -(-width // _ALIGNED) * _ALIGNED
            floats = max(floats, live[result][1])
            places[result] = Place(start, width, few[result])
        for index in {*step.inputs, *step.results}:
            if last.get(index, number) <= number:
                live.pop(index, None)
    return places, floats


def _gap(live: Mapping[int, tuple[int, int]], width: int) -> int:
    """The first place that is free for `width` floats."""
    start = 0
    for offset, end in sorted(live.values()):
        if start + width <= offset:
            break
        start = max(start, end)
    return start
