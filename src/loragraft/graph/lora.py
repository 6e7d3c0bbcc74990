"""Adapters attach to a graph by rewriting it: one LORA node per pair, after the weight scale and before the bias."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from loragraft.adapters.lora import Adapter, LoraPair
from loragraft.errors import AdapterError
from loragraft.graph.chains import Chain, Stage, find_chains, with_epilogues
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
    added: dict[str, list[Node]] = {}
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
            inputs = (chain.product, *graph.nodes[chain.product].inputs)
            attrs = {"scale": float(pair.scale * factor)}
            added.setdefault(target, []).append(
                Node(chain.family.ops[Stage.LORA], inputs, names, attrs, chain.base)
            )
    facts = {name: TensorFact(array.shape, "F32") for name, array in tensors.items()}
    epilogues = {}
    for target, nodes in added.items():
        chain = chains[target]
        staged = [
            (stage, graph.nodes[index]) for index, stage in zip(chain.nodes, chain.stages, strict=True)
        ][1:]
        before = [node for stage, node in staged if stage <= Stage.LORA]
        epilogues[chain.product] = [*before, *nodes, *(node for stage, node in staged if stage > Stage.LORA)]
    attached = with_epilogues(graph, epilogues)
    return replace(attached, tensors={**graph.tensors, **facts}), tensors


def _check_fit(adapter: Adapter, pair: LoraPair, chain: Chain, graph: Graph) -> None:
    rows = graph.tensors[chain.weight].shape
    if len(rows) == 1:
        rows = (1, *rows)
    found = (*pair.b.shape[:-1], pair.a.shape[-1])
    ranks = pair.a.shape[-2], pair.b.shape[-1]
    if found != rows or pair.a.shape[:-2] != rows[:-2] or ranks[0] != ranks[1]:
        raise AdapterError(
            adapter.path,
            f"the pair for {pair.target} does not fit the model",
            found=f"A {pair.a.shape}, B {pair.b.shape}",
            expected=f"a delta of shape {rows}",
        )
