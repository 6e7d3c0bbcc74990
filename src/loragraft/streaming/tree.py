"""Sums in one order, whoever makes which part of them.

Terms come in leaves of a few; leaves are added in pairs, these in pairs again. What lies beneath one node of that tree
may be summed anywhere: the whole has the same bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from loragraft.arrays import Floats


@dataclass(frozen=True, slots=True)
class Node:
    """The sum of `size` leaves, a power of two, from number `start` on, which `size` divides: some arrays."""

    start: int
    size: int
    arrays: Sequence[Floats]


class Tree:
    """Nodes in their order; what makes a larger one is added at once, in place."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []

    def add(self, start: int, arrays: Sequence[Floats], size: int = 1) -> None:
        """What follows the last one."""
        while self.nodes and self.nodes[-1].size == size and self.nodes[-1].start % (2 * size) == 0:
            left = self.nodes.pop()
            start, arrays, size = left.start, _added(left.arrays, arrays), 2 * size
        self.nodes.append(Node(start, size, arrays))

    def extend(self, nodes: Iterable[Node]) -> None:
        for node in nodes:
            self.add(node.start, node.arrays, node.size)

    def total(self) -> list[Floats]:
        """The whole sum. There must be a node."""
        total = list(self.nodes[-1].arrays)
        for node in reversed(self.nodes[:-1]):
            total = _added(node.arrays, total)
        self.nodes.clear()
        return total


def _added(left: Sequence[Floats], right: Sequence[Floats]) -> list[Floats]:
    total = []
    for a, b in zip(left, right, strict=True):
        a = a if a.flags.writeable else a.copy()  # what came from another process may lie in shared memory
        with np.errstate(all="ignore"):  # the lower half of what is symmetric is undefined
            np.add(a, b, out=a)
        total.append(a)
    return total


def shares(leaves: int, workers: int, extra: int = 0) -> list[range]:
    """Leaves for each worker, as many as can be alike where each sums few nodes; some may get none. The last one has
    other work too, as much as `extra` leaves."""
    unit = 1
    while 8 * unit * workers <= leaves:
        unit *= 2
    units, others = -(-leaves // unit), extra // unit if workers > 1 else 0
    edges = [min((units + others) * number // workers, units) * unit for number in range(workers)]
    return [range(first, min(stop, leaves)) for first, stop in pairwise([*edges, leaves])]
