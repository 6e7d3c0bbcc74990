"""A linear layer in a graph: the product with its weight and the epilogue that follows it.

    y = a * (s * (Wq x)  +  sum_i gamma_i * B_i (A_i x)  +  b)

The epilogue's order is fixed: weight scale s, adapters, DoRA scale g of each row, bias b, architectural scale a.
Derivation and sources: docs/numerics.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

from loragraft.graph.ops import Graph, Node, Op


class Stage(IntEnum):
    """The steps of a linear layer, in the only legal order."""

    PRODUCT = 0
    WEIGHT_SCALE = 1
    LORA = 2
    DORA_SCALE = 3
    BIAS = 4
    ARCH_SCALE = 5

    def __str__(self) -> str:
        return _STAGE_NAMES[self]


_STAGE_NAMES = {
    Stage.PRODUCT: "GEMM",
    Stage.WEIGHT_SCALE: "weight scale",
    Stage.LORA: "LoRA",
    Stage.DORA_SCALE: "DoRA scale",
    Stage.BIAS: "bias",
    Stage.ARCH_SCALE: "architectural scale",
}


@dataclass(frozen=True, slots=True)
class LinearKind:
    """The ops of one kind of linear layer, by stage."""

    name: str
    ops: Mapping[Stage, Op]
    product: str = str(Stage.PRODUCT)
    """What its product is called in messages."""

    def words(self, stages: Iterable[Stage]) -> list[str]:
        """An order of steps as messages show it."""
        return [self.product if stage is Stage.PRODUCT else str(stage) for stage in stages]

    def stage(self, op: Op) -> Stage | None:
        return next((stage for stage, own in self.ops.items() if own is op), None)


DENSE = LinearKind(
    "linear",
    {
        Stage.PRODUCT: Op.MATMUL,
        Stage.WEIGHT_SCALE: Op.WEIGHT_SCALE,
        Stage.LORA: Op.LORA,
        Stage.DORA_SCALE: Op.DORA_SCALE,
        Stage.BIAS: Op.BIAS,
        Stage.ARCH_SCALE: Op.ARCH_SCALE,
    },
)
EXPERTS = LinearKind(
    "experts",
    {
        Stage.PRODUCT: Op.EXPERTS_MATMUL,
        Stage.WEIGHT_SCALE: Op.EXPERTS_WEIGHT_SCALE,
        Stage.LORA: Op.EXPERTS_LORA,
        Stage.DORA_SCALE: Op.EXPERTS_DORA_SCALE,
        Stage.BIAS: Op.EXPERTS_BIAS,
        Stage.ARCH_SCALE: Op.ARCH_SCALE,
    },
)
EMBEDDING = LinearKind(
    "embedding",
    {
        Stage.PRODUCT: Op.EMBED,
        Stage.WEIGHT_SCALE: Op.EMBED_SCALE,
        Stage.LORA: Op.EMBED_LORA,
        Stage.ARCH_SCALE: Op.ARCH_SCALE,
    },
    product="lookup",
)
FAMILIES = {family.ops[Stage.PRODUCT]: family for family in (DENSE, EXPERTS, EMBEDDING)}


@dataclass(frozen=True, slots=True)
class Chain:
    """A product and the epilogue nodes after it, in order of execution. Indices point into the graph's nodes."""

    family: LinearKind
    nodes: tuple[int, ...]
    stages: tuple[Stage, ...]
    base: str
    """The layer's GGUF name without `.weight`; adapters for it target `<base>.weight`."""
    weight: str
    """The tensor multiplied by; another layer's if tied."""

    @property
    def product(self) -> int:
        return self.nodes[0]

    @property
    def result(self) -> int:
        return self.nodes[-1]

    @property
    def target(self) -> str:
        return f"{self.base}.weight"

    def at(self, stage: Stage) -> list[int]:
        """The indices of the chain's nodes of one stage."""
        return [index for index, own in zip(self.nodes, self.stages, strict=True) if own is stage]


def find_chains(graph: Graph) -> list[Chain]:
    """Every linear layer of the graph. A chain goes on as long as its value has one use, as the value of an
    epilogue op of its family; whether the order is legal is for `graph.spec` to say."""
    uses: dict[int, list[int]] = {}
    for index, node in enumerate(graph.nodes):
        for source in node.inputs:
            uses.setdefault(source, []).append(index)
    return [
        _follow(graph, index, FAMILIES[node.op], uses)
        for index, node in enumerate(graph.nodes)
        if node.op in FAMILIES
    ]


def _follow(graph: Graph, product: int, family: LinearKind, uses: Mapping[int, list[int]]) -> Chain:
    nodes, stages = [product], [Stage.PRODUCT]
    while len(users := uses.get(nodes[-1], [])) == 1:
        node: Node = graph.nodes[users[0]]
        stage = family.stage(node.op)
        if stage is None or stage is Stage.PRODUCT or node.inputs[0] != nodes[-1]:
            break
        nodes.append(users[0])
        stages.append(stage)
    head = graph.nodes[product]
    weight = head.weights[0] if head.weights else ""
    return Chain(family, tuple(nodes), tuple(stages), head.label, weight)


def with_epilogues(graph: Graph, epilogues: Mapping[int, Sequence[Node]]) -> Graph:
    """The graph with other epilogues: `epilogues[product]` are the nodes to follow that product in place of its own,
    in order. Each one's first input becomes the value before it; its other inputs name nodes of `graph`. Legal or not
    is for `graph.spec` to say."""
    ends = {chain.result: chain.product for chain in find_chains(graph) if chain.product in epilogues}
    skipped = {
        index for chain in find_chains(graph) if chain.product in epilogues for index in chain.nodes[1:]
    }
    nodes: list[Node] = []
    moved: list[int] = []
    for index, node in enumerate(graph.nodes):
        if index in skipped:
            moved.append(moved[node.inputs[0]])
        else:
            nodes.append(replace(node, inputs=tuple(moved[source] for source in node.inputs)))
            moved.append(len(nodes) - 1)
        for extra in epilogues[ends[index]] if index in ends else ():
            nodes.append(
                replace(extra, inputs=(moved[index], *(moved[source] for source in extra.inputs[1:])))
            )
            moved[index] = len(nodes) - 1
    return replace(
        graph, nodes=tuple(nodes), output=moved[graph.output], cuts=tuple(moved[cut] for cut in graph.cuts)
    )


def dora_scale_of(target: str) -> str:
    """The tensor with the DoRA scale of the weight `target`, which `graph.lora` makes of all adapters together."""
    return f"{target}.lora_dora_scale"
