"""Adapters attach to a graph by rewriting it: one LORA node per pair, after the weight scale and before the bias."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from loragraft.adapters.lora import Adapter, LoraPair
from loragraft.errors import AdapterError
from loragraft.graph.chains import Chain, Stage, find_chains
from loragraft.graph.ops import Graph, Node, TensorFact

Floats = npt.NDArray[np.float32]


def attach(graph: Graph, adapters: Sequence[tuple[Adapter, float]]) -> tuple[Graph, dict[str, Floats]]:
    """The graph with every pair of every adapter in it, and the adapters' tensors (float32) by name.

    Each adapter comes with the user's factor, which multiplies the pair's own scale. A pair that targets no linear
    of the graph, or does not fit it, is an AdapterError naming it: nothing is skipped. A pair for `output.weight`
    changes the logits only, one for `token_embd.weight` the embedding only, tied or not, as in PEFT.
    """
    chains = {chain.target: chain for chain in find_chains(graph)}
    tensors: dict[str, Floats] = {}
    after: dict[int, list[Node]] = {}
    for number, (adapter, factor) in enumerate(adapters):
        if adapter.arch is not None and adapter.arch != graph.arch:
            raise AdapterError(
                adapter.path, "made for another architecture", found=adapter.arch, expected=graph.arch
            )
        for target, pair in adapter.pairs.items():
            chain = chains.get(target)
            if chain is None:
                raise AdapterError(
                    adapter.path,
                    f"targets {target}, which is no linear layer of this model",
                    hint=f"the model has {len(chains)} layers that take adapters, such as {next(iter(chains))}",
                )
            _check_fit(adapter, pair, chain, graph)
            names = f"{target}.lora_a.{number}", f"{target}.lora_b.{number}"
            tensors[names[0]], tensors[names[1]] = pair.a, pair.b
            head = graph.nodes[chain.product]
            lora = chain.family.ops[Stage.LORA]
            spot = (chain.at(Stage.LORA) or chain.at(Stage.WEIGHT_SCALE) or [chain.product])[-1]
            after.setdefault(spot, []).append(
                Node(lora, head.inputs, names, {"scale": float(pair.scale * factor)}, chain.base)
            )
    facts = {name: TensorFact(array.shape, "F32") for name, array in tensors.items()}
    return _insert(graph, after, facts), tensors


def _check_fit(adapter: Adapter, pair: LoraPair, chain: Chain, graph: Graph) -> None:
    rows = graph.tensors[chain.weight].shape
    found = (*pair.b.shape[:-1], pair.a.shape[-1])
    ranks = pair.a.shape[-2], pair.b.shape[-1]
    if found != rows or pair.a.shape[:-2] != rows[:-2] or ranks[0] != ranks[1]:
        raise AdapterError(
            adapter.path,
            f"the pair for {pair.target} does not fit the model",
            found=f"A {pair.a.shape}, B {pair.b.shape}",
            expected=f"a delta of shape {rows}",
        )


def _insert(graph: Graph, after: dict[int, list[Node]], facts: dict[str, TensorFact]) -> Graph:
    """Renumber: `after[i]` are new nodes whose first input is node i's value (they are chained) and whose other
    inputs are the ones they carry; whatever used node i now uses the last of them."""
    nodes: list[Node] = []
    moved: list[int] = []
    for index, node in enumerate(graph.nodes):
        nodes.append(replace(node, inputs=tuple(moved[source] for source in node.inputs)))
        moved.append(len(nodes) - 1)
        for extra in after.get(index, []):
            inputs = (moved[index], *(moved[source] for source in extra.inputs))
            nodes.append(replace(extra, inputs=inputs))
            moved[index] = len(nodes) - 1
    return Graph(graph.arch, tuple(nodes), moved[graph.output], {**graph.tensors, **facts}, graph.unused)
