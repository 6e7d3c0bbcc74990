"""Adapters on the device: which A, B and row scales each linear of a set has, and where they lie."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from loragraft.arrays import Floats
from loragraft.backends.batch import AdapterSet
from loragraft.backends.gpu.memory import Memory
from loragraft.backends.plan import EmbedStep, Linear, LinearStep, LoraTerm, Step, steps_of
from loragraft.backends.slots import Slots
from loragraft.graph.ops import Graph

Lookup = Callable[[str], Floats]


@dataclass(frozen=True, slots=True)
class Term:
    """gamma * B (A x); `a` and `b` are offsets, in floats, of every expert's one after the other."""

    a: int
    b: int
    rank: int
    gamma: float


@dataclass(slots=True)
class CompiledSet:
    """Terms and row scales by the number of the linear (`numbered`); `owned`: what is freed with it."""

    terms: dict[int, list[Term]] = field(default_factory=dict)
    lengths: dict[int, int] = field(default_factory=dict)
    owned: list[int] = field(default_factory=list)

    def drop(self, memory: Memory) -> None:
        for offset in self.owned:
            memory.drop(offset)


def numbered(steps: list[Step] | tuple[Step, ...]) -> Iterator[tuple[int, Linear | EmbedStep]]:
    """Every linear and embedding with its number, the same whatever adapters are in the graph."""
    number = 0
    for step in steps:
        for one in (
            step.linears if isinstance(step, LinearStep) else [step] if isinstance(step, EmbedStep) else []
        ):
            yield number, one
            number += 1


def compiled(
    steps: list[Step] | tuple[Step, ...],
    floats: Lookup,
    memory: Memory,
    known: Mapping[int, int] | None = None,
) -> CompiledSet | None:
    """The adapters in these steps; None if there are none. `known`: where arrays lie already, by their id."""
    made = CompiledSet()

    def place(name: str) -> int:
        array = floats(name)
        if known is not None and id(array) in known:
            return known[id(array)]
        made.owned.append(memory.add(array))
        return made.owned[-1]

    def placed(term: LoraTerm) -> Term:
        return Term(place(term.a), place(term.b), floats(term.b).shape[-1], term.gamma)

    try:
        for number, one in numbered(steps):
            if one.loras:
                made.terms[number] = [placed(term) for term in one.loras]
            if isinstance(one, Linear) and one.dora_scale is not None:
                made.lengths[number] = place(one.dora_scale)
    except BaseException:
        made.drop(memory)
        raise
    return made if made.terms or made.lengths else None


class DeviceAdapters:
    """The adapters of a program by slot, and the sets of them that rows run under."""

    def __init__(self, memory: Memory, slots: Slots) -> None:
        self._memory, self._slots = memory, slots
        self._adapters: dict[int, CompiledSet] = {}
        self._arrays: dict[int, dict[int, int]] = {}
        self._sets: dict[AdapterSet, CompiledSet] = {}

    def add(self, graph: Graph, tensors: Mapping[str, Floats], slot: int) -> None:
        steps = steps_of(graph)
        made = compiled(steps, tensors.__getitem__, self._memory) or CompiledSet()
        self._adapters[slot] = made
        own = {id(array) for pair in self._slots.adapter(slot).pairs.values() for array in (pair.a, pair.b)}
        places: dict[int, int] = {}
        for number, one in numbered(steps):
            for term, placed in zip(one.loras, made.terms.get(number, ()), strict=True):
                places |= {id(tensors[term.a]): placed.a, id(tensors[term.b]): placed.b}
        self._arrays[slot] = {key: offset for key, offset in places.items() if key in own}

    def drop(self, slot: int) -> None:
        for chosen in [chosen for chosen in self._sets if slot in dict(chosen)]:
            self._sets.pop(chosen).drop(self._memory)
        self._adapters.pop(slot).drop(self._memory)
        del self._arrays[slot]

    def get(self, sets: Sequence[AdapterSet]) -> list[CompiledSet]:
        """The sets of a batch, each made ready at its first use."""
        for chosen in sets:
            if chosen not in self._sets:
                self._sets[chosen] = self._compiled(chosen)
        for old in list(self._sets)[: max(0, len(self._sets) - _KEPT_SETS)]:
            if old not in sets:
                self._sets.pop(old).drop(self._memory)
        return [self._sets[chosen] for chosen in sets]

    def _compiled(self, chosen: AdapterSet) -> CompiledSet:
        if not self._slots.decomposed(chosen):  # strengths change factors alone
            self._slots.check(chosen)
            made = CompiledSet()
            for slot, strength in chosen:
                for number, terms in self._adapters[slot].terms.items():
                    scaled = [Term(t.a, t.b, t.rank, t.gamma * strength) for t in terms]
                    made.terms.setdefault(number, []).extend(scaled)
            return made
        graph, tensors = self._slots.attached(chosen)
        known = {key: offset for slot, _ in chosen for key, offset in self._arrays[slot].items()}
        return compiled(steps_of(graph), tensors.__getitem__, self._memory, known) or CompiledSet()


_KEPT_SETS = 256
