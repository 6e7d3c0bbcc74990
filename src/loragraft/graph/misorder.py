"""Deliberately wrong epilogues, to measure what each mistake costs and to test that `graph.spec` rejects it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum

from loragraft.graph.chains import Chain, Stage, find_chains, with_epilogues
from loragraft.graph.ops import Graph, Node

Steps = Sequence[tuple[Stage, Node]]
"""An epilogue, the product left out."""
Rearrange = Callable[[Steps], Steps]


class Mistake(StrEnum):
    """What an engine can get wrong in a linear's epilogue; the error terms are derived in docs/numerics.md."""

    LORA_BEFORE_SCALE = "LoRA before weight scale"
    BIAS_BEFORE_SCALE = "bias before weight scale"
    BOTH_BEFORE_SCALE = "LoRA and bias before weight scale"
    SCALE_OMITTED = "weight scale omitted"
    SCALE_TWICE = "weight scale applied twice"
    DORA_SCALE_BEFORE_LORA = "DoRA scale before LoRA"
    BIAS_BEFORE_DORA_SCALE = "bias before DoRA scale"
    DORA_SCALE_OMITTED = "DoRA scale omitted"
    ARCH_SCALE_BEFORE_BIAS = "architectural scale before bias"


def _early(*stages: Stage, anchor: Stage) -> Rearrange:
    """Moves the steps of `stages` in front of the first `anchor`, in their own order."""

    def rearrange(steps: Steps) -> Steps:
        pulled = [step for step in steps if step[0] in stages]
        rest = [step for step in steps if step[0] not in stages]
        spot = [stage for stage, _ in rest].index(anchor)
        return [*rest[:spot], *pulled, *rest[spot:]]

    return rearrange


def _omit(stage: Stage) -> Rearrange:
    return lambda steps: [step for step in steps if step[0] is not stage]


def _repeat_scale(steps: Steps) -> Steps:
    return [step for step in steps if step[0] is Stage.WEIGHT_SCALE] + list(steps)


_SCALE, _LORA, _DORA = Stage.WEIGHT_SCALE, Stage.LORA, Stage.DORA_SCALE
_BIAS, _ARCH = Stage.BIAS, Stage.ARCH_SCALE

#: For every mistake: the steps that a linear must have for it to be possible, and what it does to the epilogue.
_RULES: Mapping[Mistake, tuple[set[Stage], Rearrange]] = {
    Mistake.LORA_BEFORE_SCALE: ({_SCALE, _LORA}, _early(_LORA, anchor=_SCALE)),
    Mistake.BIAS_BEFORE_SCALE: ({_SCALE, _BIAS}, _early(_BIAS, anchor=_SCALE)),
    Mistake.BOTH_BEFORE_SCALE: ({_SCALE, _LORA, _BIAS}, _early(_LORA, _BIAS, anchor=_SCALE)),
    Mistake.SCALE_OMITTED: ({_SCALE}, _omit(_SCALE)),
    Mistake.SCALE_TWICE: ({_SCALE}, _repeat_scale),
    Mistake.DORA_SCALE_BEFORE_LORA: ({_LORA, _DORA}, _early(_DORA, anchor=_LORA)),
    Mistake.BIAS_BEFORE_DORA_SCALE: ({_DORA, _BIAS}, _early(_BIAS, anchor=_DORA)),
    Mistake.DORA_SCALE_OMITTED: ({_DORA}, _omit(_DORA)),
    Mistake.ARCH_SCALE_BEFORE_BIAS: ({_BIAS, _ARCH}, _early(_ARCH, anchor=_BIAS)),
}


def possible(chain: Chain, mistake: Mistake) -> bool:
    """Whether the linear has what the mistake needs (a weight scale, an adapter, a bias)."""
    return _RULES[mistake][0] <= set(chain.stages)


def wrong_epilogue(graph: Graph, chain: Chain, mistake: Mistake) -> list[Node]:
    """The nodes that would follow the product, in the wrong order; their inputs are those of the right one."""
    steps = [(stage, graph.nodes[index]) for index, stage in zip(chain.nodes, chain.stages, strict=True)]
    return [node for _, node in _RULES[mistake][1](steps[1:])]


def misorder(graph: Graph, mistake: Mistake, only: str | None = None) -> Graph | None:
    """The graph with the mistake made in every linear where it is possible, or in the linear `only` (its GGUF name
    without `.weight`) alone. None if it is possible nowhere."""
    chains = [
        chain for chain in find_chains(graph) if possible(chain, mistake) and only in (None, chain.base)
    ]
    return misorder_each(graph, {chain.base: mistake for chain in chains}) if chains else None


def misorder_each(graph: Graph, mistakes: Mapping[str, Mistake]) -> Graph:
    """The graph with a mistake of its own in each of some linears, by GGUF name without `.weight`."""
    chains = [chain for chain in find_chains(graph) if chain.base in mistakes]
    return with_epilogues(
        graph, {chain.product: wrong_epilogue(graph, chain, mistakes[chain.base]) for chain in chains}
    )
