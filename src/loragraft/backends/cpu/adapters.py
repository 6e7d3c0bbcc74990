"""Adapters as the C++ core applies them (native/engine/adapters.h), from graphs that they are attached to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from loragraft import _native
from loragraft.arrays import Floats
from loragraft.backends.activations import Factor, round_factor
from loragraft.backends.batch import AdapterSet
from loragraft.backends.plan import EmbedStep, Linear, LinearStep, Plan, steps_of
from loragraft.backends.slots import Slots
from loragraft.graph.ops import Graph

engine = _native.engine
Lookup = Callable[[str], Floats]
Factors = Callable[[Graph], dict[str, Factor]]
"""`activations.rounded_factors`; the core itself rounds those of 8 bits."""


def compiled_adapter(graph: Graph, tensors: Mapping[str, Floats], factors: Factors) -> Any:
    """The one adapter that is attached to `graph`, at strength 1."""
    return _adapter(enumerate(steps_of(graph)), tensors.__getitem__, factors(graph))


def fixed_set(graph: Graph, plan: Plan, floats: Lookup, factors: Factors) -> Any | None:
    """What is attached to the graph of a program itself; None if nothing is."""
    made = _adapter(enumerate(plan.steps), floats, factors(graph))
    adapted = [step for step in plan.steps if isinstance(step, LinearStep | EmbedStep) and _is_adapted(step)]
    if not adapted:
        return None
    chosen = engine.AdapterSet(((made, 1.0),))
    _set_dora(chosen, enumerate(plan.steps), floats)
    return chosen


def compiled_set(chosen: AdapterSet, adapters: Mapping[int, Any], slots: Slots, factors: Factors) -> Any:
    """A set of adapters with their strengths. Its graph is verified, once for all strengths where these change nothing
    but factors; DoRA's factors, and what they make of the B that come after, are the set's own."""
    made = engine.AdapterSet(tuple((adapters[slot], strength) for slot, strength in chosen))
    if not slots.decomposed(chosen):
        slots.check(chosen)
        return made
    graph, tensors = slots.attached(chosen)
    steps = steps_of(graph)
    rounded = factors(graph)
    _set_dora(made, enumerate(steps), tensors.__getitem__)
    own = {id(pair.b) for slot, _ in chosen for pair in slots.adapter(slot).pairs.values()}
    for number, step in enumerate(steps):
        if not isinstance(step, LinearStep):
            continue
        places = dict.fromkeys(range(len(chosen)), 0)  # of each member's layers in this step, the next
        for linear in step.linears:
            for term in linear.loras:
                member = int(term.b.rpartition(".")[2])
                b = tensors[term.b]
                if id(b) not in own:
                    b = _stacked(_rounded(b, rounded.get(term.b)))
                    made.rescale(number, member, places[member], b)
                places[member] += 1
    return made


def _is_adapted(step: LinearStep | EmbedStep) -> bool:
    if isinstance(step, EmbedStep):
        return bool(step.loras)
    return any(linear.loras or linear.dora_scale for linear in step.linears)


def _rounded(matrix: Floats, factor: Factor | None) -> Floats:
    """A or B as the core takes it."""
    return matrix if factor is None or factor.bits == 8 else round_factor(matrix, factor)


def _adapter(steps: Any, floats: Lookup, factors: Mapping[str, Factor]) -> Any:
    made = engine.Adapter()
    for number, step in steps:
        match step:
            case EmbedStep(loras=(_, *_)):
                _add_embed(made, number, step, floats)
            case LinearStep() if any(linear.loras for linear in step.linears):
                _add_linear(made, number, step.linears, floats, factors)
    return made


def _add_embed(made: Any, number: int, step: EmbedStep, floats: Lookup) -> None:
    """Several pairs of one embedding are one of their ranks together, each B times its factor."""
    a = np.concatenate([floats(term.a) for term in step.loras])
    if len(step.loras) == 1:
        (term,) = step.loras
        made.embed(number, np.ascontiguousarray(a), np.ascontiguousarray(floats(term.b)), term.gamma)
        return
    b = [floats(term.b) * np.float32(term.gamma) for term in step.loras]
    made.embed(number, np.ascontiguousarray(a), np.ascontiguousarray(np.concatenate(b, axis=1)), 1.0)


def _add_linear(
    made: Any,
    number: int,
    linears: tuple[Linear, ...],
    floats: Lookup,
    factors: Mapping[str, Factor],
) -> None:
    """A of layers that follow each other are one stack if they are kept alike."""
    stacks: list[tuple[list[Floats], bool, list[tuple[int, int, float, Floats]]]] = []
    for place, linear in enumerate(linears):
        for term in linear.loras:
            factor = factors.get(term.a)
            a, b = (_stacked(_rounded(floats(name), factors.get(name))) for name in (term.a, term.b))
            q8 = factor is not None and factor.bits == 8
            if not stacks or stacks[-1][1] != q8:
                stacks.append(([], q8, []))
            parts, _, layers = stacks[-1]
            layers.append((place, sum(part.shape[1] for part in parts), term.gamma, b))
            parts.append(a)
    made.linear(
        number,
        [(np.ascontiguousarray(np.concatenate(parts, axis=1)), q8, layers) for parts, q8, layers in stacks],
    )


def _set_dora(chosen: Any, steps: Any, floats: Lookup) -> None:
    for number, step in steps:
        if isinstance(step, LinearStep):
            for place, linear in enumerate(step.linears):
                if linear.dora_scale is not None:
                    factors = np.ascontiguousarray(floats(linear.dora_scale), np.float32)
                    chosen.dora(number, place, factors.reshape(-1))


def _stacked(matrix: Floats) -> Floats:
    """[rows, columns], or that of every expert, as [experts, rows, columns]."""
    return np.ascontiguousarray(matrix if matrix.ndim == 3 else matrix[np.newaxis], np.float32)
