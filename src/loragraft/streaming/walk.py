"""The windows of a text on their way through a slice of a model, product by product.

All windows wait before each linear layer until its weights are what they shall be: rounded, with their inputs at hand,
and each later product is shown what the rounded ones before it make.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from loragraft.arrays import Floats, Ids
from loragraft.backends.gradients import Tape
from loragraft.graph.ops import Graph, Op
from loragraft.system.threads import in_threads

#: Tokens that go together.
BATCH = 512


@dataclass(frozen=True, slots=True)
class Product:
    """The weights `names` that are multiplied by the same inputs: float32 [rows, in], or [rows, k, in], batch by batch;
    `ids` int32 [rows, k]: the experts chosen."""

    names: tuple[str, ...]
    inputs: list[Floats]
    ids: list[Ids] | None


class _Batch:
    """Some windows, and the values that nodes to come want."""

    def __init__(self, tape: Tape, tokens: Ids, hidden: Floats | None) -> None:
        self.tape, self.tokens, self.hidden = tape, tokens, hidden
        self.values: dict[int, Any] = {}


class Walk:
    """Of `windows` int32 [n, length], whose hidden states float32 [n * length, d] enter `part`. `weights` may change
    as long as no product with them has begun."""

    def __init__(
        self, part: Graph, weights: Mapping[str, Floats], windows: Ids, hidden: Floats | None, threads: int
    ) -> None:
        self._graph, self._threads = part, threads
        self._at = 0
        self._products = _products(part)
        self._last_use = {source: index for index, node in enumerate(part.nodes) for source in node.inputs}
        self._last_node = {name: index for index, node in enumerate(part.nodes) for name in node.weights}
        length = windows.shape[1]
        at_once = max(1, BATCH // length)
        self._batches = []
        for first in range(0, len(windows), at_once):
            here = windows[first : first + at_once]
            rows = slice(first * length, first * length + here.size)
            tape = Tape(part, weights, len(here), length)
            self._batches.append(_Batch(tape, here, None if hidden is None else hidden[rows]))

    def product(self) -> Product | None:
        """Go on to the next product, and give its inputs; None if there is none."""
        if not self._products:
            return None
        return self.product_of(self._products[min(self._products)][2])

    def product_of(self, names: tuple[str, ...]) -> Product:
        """Go on to the product of `names`, one that `products_of` has and that is yet to come."""
        while True:
            first = min(self._products)
            x, ids, own = self._products.pop(first)
            if own == names:
                break
        self._go(first)
        inputs = [batch.values[x] for batch in self._batches]
        chosen = None if ids is None else [batch.values[ids] for batch in self._batches]
        return Product(names, inputs, chosen)

    def passed(self) -> set[str]:
        """The weights that nothing to come wants."""
        return {name for name, index in self._last_node.items() if index < self._at}

    def output(self) -> Floats:
        """Go on to the end: float32 [n * length, width]."""
        self._go(self._graph.output + 1)
        return np.concatenate([batch.values.pop(self._graph.output) for batch in self._batches])

    def _go(self, stop: int) -> None:
        def go(batch: _Batch) -> None:
            for index in range(self._at, stop):
                node = self._graph.nodes[index]
                inputs = [batch.values[source] for source in node.inputs]
                batch.values[index] = batch.tape.value(node, batch.tokens, batch.hidden, inputs)
                for source in node.inputs:
                    if self._last_use[source] == index:
                        batch.values.pop(source, None)

        in_threads(go, self._batches, self._threads)
        self._at = stop


def products_of(part: Graph) -> list[tuple[str, ...]]:
    """The weights of each product, in the order of a walk."""
    found = _products(part)
    return [found[first][2] for first in sorted(found)]


def _products(part: Graph) -> dict[int, tuple[int, int | None, tuple[str, ...]]]:
    """By the first node that multiplies: the nodes of the inputs and of the experts chosen, and the weights."""
    found: dict[tuple[int, ...], list[tuple[int, str]]] = {}
    for index, node in enumerate(part.nodes):
        if node.op in (Op.MATMUL, Op.EXPERTS_MATMUL):
            found.setdefault(node.inputs, []).append((index, node.weights[0]))
    return {
        uses[0][0]: (
            inputs[0],
            inputs[1] if len(inputs) > 1 else None,
            tuple(dict.fromkeys(name for _, name in uses)),
        )
        for inputs, uses in found.items()
    }
