"""The adapters of a program, by slot, and the graph with any set of them in it."""

from __future__ import annotations

from itertools import count

from loragraft.adapters.lora import Adapter
from loragraft.arrays import Floats
from loragraft.backends.batch import AdapterSet
from loragraft.backends.program import Weights
from loragraft.errors import LoragraftError
from loragraft.graph.lora import RowFactors, attach
from loragraft.graph.ops import Graph
from loragraft.graph.spec import verify

_KEPT = 4096


class Slots:
    """Adapters by number; a number is not used twice."""

    def __init__(self, graph: Graph, weights: Weights, *, unchecked: bool = False) -> None:
        self._graph, self._weights, self._unchecked = graph, weights, unchecked
        self._adapters: dict[int, Adapter] = {}
        self._numbers = count()
        self._factors = RowFactors()
        self._lawful: set[tuple[int, ...]] = set()

    def add(self, adapter: Adapter) -> tuple[int, Graph, dict[str, Floats]]:
        """Its slot, and the graph with it alone, at strength 1. Raises AdapterError if it does not fit."""
        try:
            attached = self._attached([(adapter, 1.0)])
        except LoragraftError:
            self._factors.forget(adapter)
            raise
        slot = next(self._numbers)
        self._adapters[slot] = adapter
        return slot, *attached

    def drop(self, slot: int) -> None:
        self._factors.forget(self._adapters.pop(slot))
        self._lawful = {slots for slots in self._lawful if slot not in slots}

    def adapter(self, slot: int) -> Adapter:
        return self._adapters[slot]

    def decomposed(self, chosen: AdapterSet) -> bool:
        """Whether one of them scales rows (DoRA, IA3): then strengths change more than factors."""
        adapters = [self._adapters[slot] for slot, _ in chosen]
        return any(
            adapter.transforms or any(pair.magnitude is not None for pair in adapter.pairs.values())
            for adapter in adapters
        )

    def check(self, chosen: AdapterSet) -> None:
        """Verify the graph with this set. Its nodes are the same for all strengths: the same slots are tried once."""
        slots = tuple(slot for slot, _ in chosen)
        if slots not in self._lawful:
            self.attached(chosen)
            if len(self._lawful) > _KEPT:
                self._lawful.clear()
            self._lawful.add(slots)

    def attached(self, chosen: AdapterSet) -> tuple[Graph, dict[str, Floats]]:
        """The graph with this set, verified, and the set's tensors (`graph.lora.attach`)."""
        return self._attached([(self._adapters[slot], strength) for slot, strength in chosen])

    def _attached(self, adapters: list[tuple[Adapter, float]]) -> tuple[Graph, dict[str, Floats]]:
        graph, tensors = attach(self._graph, adapters, self._weights, self._factors)
        if not self._unchecked:
            verify(graph)
        return graph, tensors
