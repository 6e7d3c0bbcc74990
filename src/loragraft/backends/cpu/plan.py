"""The plan of the native backend: a graph's nodes as steps, a linear layer and its whole epilogue being one step."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from loragraft.graph.chains import EMBEDDING, EXPERTS, Chain, Stage, find_chains
from loragraft.graph.ops import Graph, Node, Op


@dataclass(frozen=True, slots=True)
class LoraTerm:
    """gamma * B (A x), by the names of A and B."""

    a: str
    b: str
    gamma: float


@dataclass(frozen=True, slots=True)
class LinearStep:
    """arch_scale * (dora_scale * (scale * (W x) + LoRA) + bias), dense or by expert; the kernel applies it in this
    order."""

    result: int
    x: int
    ids: int | None
    """The node that chooses experts; None for a dense layer."""
    weight: str
    input_scale: str | None
    scale: str | None
    loras: tuple[LoraTerm, ...]
    dora_scale: str | None
    bias: str | None
    arch_scale: tuple[str, ...] | float
    """A number, or the name of a tensor [1] in a tuple."""
    label: str

    @property
    def results(self) -> tuple[int, ...]:
        return (self.result,)

    @property
    def inputs(self) -> tuple[int, ...]:
        return (self.x,) if self.ids is None else (self.x, self.ids)


@dataclass(frozen=True, slots=True)
class GroupStep:
    """Dense layers that read the same x one after the other (q, k and v; gate and up): one parallel loop for all."""

    linears: tuple[LinearStep, ...]

    @property
    def results(self) -> tuple[int, ...]:
        return tuple(step.result for step in self.linears)

    @property
    def inputs(self) -> tuple[int, ...]:
        return (self.linears[0].x,)


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


Step = LinearStep | GroupStep | GatedStep | NodeStep


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps in order; `released[i]` are the values that nobody needs after step i."""

    steps: tuple[Step, ...]
    released: tuple[tuple[int, ...], ...]
    output: int
    shared_a: dict[int, tuple[str, ...]] = field(default_factory=dict)
    """For each value that dense layers with adapters read: the names of all their A, in order. x A^T is computed
    once for all of them (q, k and v; gate and up)."""

    @property
    def linears(self) -> Iterable[LinearStep]:
        for step in self.steps:
            if isinstance(step, LinearStep):
                yield step
            elif isinstance(step, GroupStep):
                yield from step.linears


def plan(graph: Graph) -> Plan:
    """The plan of a graph that `graph.spec` has verified: the epilogues' order is not looked at again."""
    linears = {chain.result: chain for chain in find_chains(graph) if chain.family is not EMBEDDING}
    covered = {index for chain in linears.values() for index in chain.nodes}
    gated = dict(_gated(graph))
    steps: list[Step] = []
    for index, node in enumerate(graph.nodes):
        if index in linears:
            steps.append(_linear(graph, linears[index]))
        elif index in gated:
            gate = gated[index]
            up = next(source for source in node.inputs if source != gate)
            steps.append(GatedStep(index, graph.nodes[gate].inputs[0], up))
        elif index not in covered and index not in gated.values():
            steps.append(NodeStep(index, node))
    shared: dict[int, tuple[str, ...]] = {}
    for step in steps:
        if isinstance(step, LinearStep) and step.ids is None and step.loras:
            shared[step.x] = shared.get(step.x, ()) + tuple(term.a for term in step.loras)
    grouped = list(_grouped(steps))
    return Plan(tuple(grouped), tuple(_released(grouped, graph.output)), graph.output, shared)


def _grouped(steps: list[Step]) -> Iterable[Step]:
    """Neighbouring dense layers of the same x become one step."""
    waiting: list[LinearStep] = []
    for step in [*steps, None]:
        if isinstance(step, LinearStep) and step.ids is None:
            if waiting and waiting[0].x != step.x:
                yield _one_or_group(waiting)
                waiting = []
            waiting.append(step)
            continue
        if waiting:
            yield _one_or_group(waiting)
            waiting = []
        if step is not None:
            yield step


def _one_or_group(steps: list[LinearStep]) -> Step:
    return steps[0] if len(steps) == 1 else GroupStep(tuple(steps))


def _linear(graph: Graph, chain: Chain) -> LinearStep:
    head = graph.nodes[chain.product]

    def one(stage: Stage) -> str | None:
        return next((graph.nodes[index].weights[0] for index in chain.at(stage)), None)

    arch: tuple[str, ...] | float = 1.0
    for index in chain.at(Stage.ARCH_SCALE):
        node = graph.nodes[index]
        arch = node.weights if node.weights else float(node.attrs["value"])
    return LinearStep(
        result=chain.result,
        x=head.inputs[0],
        ids=head.inputs[1] if chain.family is EXPERTS else None,
        weight=chain.weight,
        input_scale=head.weights[1] if len(head.weights) > 1 else None,
        scale=one(Stage.WEIGHT_SCALE),
        loras=tuple(
            LoraTerm(node.weights[0], node.weights[1], float(node.attrs["scale"]))
            for node in (graph.nodes[index] for index in chain.at(Stage.LORA))
        ),
        dora_scale=one(Stage.DORA_SCALE),
        bias=one(Stage.BIAS),
        arch_scale=arch,
        label=chain.base,
    )


def _gated(graph: Graph) -> Iterable[tuple[int, int]]:
    """(MUL, SILU) pairs where the SILU has no other use."""
    uses: dict[int, int] = {graph.output: 1}
    for node in graph.nodes:
        for source in node.inputs:
            uses[source] = uses.get(source, 0) + 1
    for index, node in enumerate(graph.nodes):
        if node.op is not Op.MUL or node.inputs[0] == node.inputs[1]:
            continue
        first = node.inputs[0]
        if graph.nodes[first].op is Op.SILU and uses[first] == 1:
            yield index, first


def _released(steps: list[Step], output: int) -> Iterable[tuple[int, ...]]:
    last = {source: number for number, step in enumerate(steps) for source in step.inputs}
    for number, step in enumerate(steps):
        ended = {source for source in step.inputs if last[source] == number}
        ended |= {result for result in step.results if result not in last}
        yield tuple(sorted(ended - {output}))
