"""What a pass tells kernels of its rows: the terms of their adapters, the turns of their positions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from loragraft.arrays import Floats
from loragraft.backends.batch import Batch
from loragraft.backends.gpu.adapters import CompiledSet
from loragraft.backends.reference_ops import rope_factors
from loragraft.graph.ops import Node

Words = npt.NDArray[np.uint32]
NONE = 0xFFFFFFFF
"""No such tensor."""


@dataclass(frozen=True, slots=True)
class RopeTable:
    """Radians of every pair for each position, float64 [rotary / 2]."""

    per_position: npt.NDArray[np.float64]
    magnitude: float
    rotary: int

    @classmethod
    def of(cls, node: Node, context: int | None, floats: Callable[[str], Floats]) -> RopeTable:
        """That of a ROPE node, in a program for `context` tokens."""
        at = node.attrs
        per_position = np.asarray(at["frequencies"], np.float64)
        if factors := rope_factors(node, context):
            per_position = per_position / floats(factors)
        return cls(per_position, at["magnitude"], at["rotary"])

    def turns(self, positions: npt.NDArray[np.int32]) -> Floats:
        """Cosines, then sines of every row, [rows, rotary]."""
        angles = positions[:, None] * self.per_position
        both = np.concatenate([np.cos(angles), np.sin(angles)], axis=1) * self.magnitude
        table = np.zeros((len(positions), self.rotary), np.float32)
        table[:, : both.shape[1]] = both
        return table


@dataclass(frozen=True, slots=True)
class Terms:
    """The table of adapters of a pass: words that follow the head, ranks by linear, the most of all."""

    words: Words
    ranks: tuple[int, ...]
    stride: int
    sets: int


def terms_of(sets: Sequence[CompiledSet], numbers: int, begin: int = 0) -> Terms:
    """For each linear and each set three words: where its terms begin, how many, where its row scales lie. A term is
    five words: where A and B lie, its rank, gamma as the bits of a float32, the ranks before it. The table begins at
    word `begin` of what the kernels see."""
    table = np.empty((numbers, max(1, len(sets)), 3), np.uint32)
    table[:] = 0, 0, NONE
    more: list[int] = []
    ranks = [0] * numbers
    first = begin + table.size
    for index, chosen in enumerate(sets):
        for number, terms in chosen.terms.items():
            table[number, index, :2] = first + len(more), len(terms)
            before = 0
            for term in terms:
                more += (term.a, term.b, term.rank, int(np.float32(term.gamma).view(np.uint32)), before)
                before += term.rank
            ranks[number] = max(ranks[number], before)
        for number, offset in chosen.lengths.items():
            table[number, index, 2] = offset
    words = np.concatenate([table.reshape(-1), np.array(more, np.uint32)])
    return Terms(words, tuple(ranks), max(ranks, default=0), table.shape[1])


def chunks(batch: Batch, rows: int) -> list[Batch]:
    """The batch in parts of at most `rows` rows, in order."""
    if len(batch) <= rows:
        return [batch]
    return [
        Batch(
            batch.tokens[start : start + rows],
            batch.sequences[start : start + rows],
            batch.positions[start : start + rows],
            batch.wants[start : start + rows],
            batch.adapters[start : start + rows],
            batch.sets,
        )
        for start in range(0, len(batch), rows)
    ]
