"""What one forward pass tells the kernels: the buffer `batch` of kernels/common.wgsl."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from loragraft.backends.batch import Batch
from loragraft.backends.webgpu.adapters import CompiledSet
from loragraft.backends.webgpu.pages import PAGE
from loragraft.backends.webgpu.shaders import NONE

Words = npt.NDArray[np.uint32]
_HEAD = 64
_ROPES = 16
MOST_ROPES = _HEAD - _ROPES


@dataclass(frozen=True, slots=True)
class RopeTable:
    """Radians of every pair for each position, float64 [rotary / 2]."""

    per_position: npt.NDArray[np.float64]
    magnitude: float
    rotary: int

    def words(self, positions: npt.NDArray[np.int32]) -> Words:
        """Cosines, then sines of every row, as the bits of float32."""
        angles = positions[:, None] * self.per_position
        both = np.concatenate([np.cos(angles), np.sin(angles)], axis=1) * self.magnitude
        table = np.zeros((len(positions), self.rotary), np.float32)
        table[:, : both.shape[1]] = both
        return table.reshape(-1).view(np.uint32)


@dataclass(frozen=True, slots=True)
class Terms:
    """The table of adapters of a pass: words that follow the head, ranks by linear, the most of all."""

    words: Words
    ranks: tuple[int, ...]
    stride: int
    sets: int


def terms_of(sets: Sequence[CompiledSet], numbers: int) -> Terms:
    """For each linear and each set three words: where its terms begin, how many, where its row scales lie."""
    table = np.empty((numbers, max(1, len(sets)), 3), np.uint32)
    table[:] = 0, 0, NONE
    more: list[int] = []
    ranks = [0] * numbers
    first = _HEAD + table.size
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


@dataclass(slots=True)
class Pass:
    """Rows that go through together. `floats`: what the values of a row take of the arena; `output`: its result."""

    batch: Batch
    tables: Mapping[int, list[int]]
    terms: Terms
    ropes: Sequence[RopeTable]
    copies: Sequence[tuple[int, int]]
    floats: int
    output: int
    selects: bool
    slots: int

    @property
    def rows(self) -> int:
        return len(self.batch)

    @property
    def wanted(self) -> int:
        return int(self.batch.wants.sum())

    @property
    def ranks(self) -> tuple[int, ...]:
        return self.terms.ranks

    @property
    def output_rows(self) -> int:
        return self.wanted if self.selects else self.rows

    @property
    def output_at(self) -> int:
        return self.floats * self.rows

    @property
    def scratch_at(self) -> int:
        return self.output_at + self.output * self.output_rows

    @property
    def arena(self) -> int:
        """Floats that the arena must have."""
        return self.scratch_at + self.terms.stride * self.rows * self.slots

    def words(self) -> Words:
        """The buffer."""
        batch, head = self.batch, np.zeros(_HEAD, np.uint32)
        parts: list[Words] = [head, self.terms.words]
        at = len(head) + len(self.terms.words)

        def append(words: Words) -> int:
            nonlocal at
            parts.append(words)
            start, at = at, at + len(words)
            return start

        pages, slots = self._pages(at + 5 * self.rows)
        columns = [batch.tokens, batch.positions, batch.adapters, pages, slots]
        head[5] = append(
            np.concatenate([np.asarray(c).astype(np.int64) & NONE for c in columns]).astype(np.uint32)
        )
        for run in batch.runs():
            append(np.array(self.tables[run.sequence], np.uint32))
        head[6] = append(np.flatnonzero(batch.wants).astype(np.uint32))
        head[9] = append(np.array(self.copies, np.uint32).reshape(-1))
        for number, rope in enumerate(self.ropes):
            head[_ROPES + number] = append(rope.words(batch.positions))
        head[:5] = self.rows, self.wanted, self.output_at, self.scratch_at, self.terms.stride
        head[7], head[8] = _HEAD, self.terms.sets
        return np.concatenate(parts)

    def _pages(self, first: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Of every row, where its sequence's pages are listed, and its own slot."""
        lists, slots = np.empty(self.rows, np.int64), np.empty(self.rows, np.int64)
        for run in self.batch.runs():
            table = np.array(self.tables[run.sequence], np.int64)
            rows = slice(run.first, run.stop)
            positions = self.batch.positions[rows]
            lists[rows] = first
            slots[rows] = table[positions // PAGE] * PAGE + positions % PAGE
            first += len(table)
        return lists, slots


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
