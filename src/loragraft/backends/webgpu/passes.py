"""What one forward pass tells the kernels: the buffer `batch` of kernels/common.wgsl."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from loragraft.backends.batch import Batch
from loragraft.backends.gpu.pages import PAGE
from loragraft.backends.gpu.states import Move
from loragraft.backends.gpu.tables import NONE, RopeTable, Terms, Words

HEAD = 64
"""Words before the table of adapters."""
_ROPES = 16
MOST_ROPES = HEAD - _ROPES


@dataclass(slots=True)
class Pass:
    """Rows that go through together. `floats`: what the values of a row take of the arena; `output`: its result."""

    batch: Batch
    tables: Mapping[int, list[int]]
    moves: Mapping[int, Move]
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
    def runs(self) -> int:
        return len(self.batch.runs())

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
    def largest_at(self) -> int:
        return self.scratch_at + self.terms.stride * self.rows * self.slots

    @property
    def arena(self) -> int:
        """Floats that the arena must have."""
        return self.largest_at + 2 * self.output_rows

    def words(self) -> Words:
        """The buffer."""
        batch, head = self.batch, np.zeros(HEAD, np.uint32)
        parts: list[Words] = [head, self.terms.words]
        at = len(head) + len(self.terms.words)

        def append(words: Words) -> int:
            nonlocal at
            parts.append(words)
            start, at = at, at + len(words)
            return start

        runs = batch.runs()
        pages, slots = self._pages(at + 6 * self.rows)
        run_of = np.repeat(np.arange(len(runs)), [run.stop - run.first for run in runs])
        columns = [batch.tokens, batch.positions, batch.adapters, pages, slots, run_of]
        head[5] = append(
            np.concatenate([np.asarray(c).astype(np.int64) & NONE for c in columns]).astype(np.uint32)
        )
        for run in runs:
            append(np.array(self.tables[run.sequence], np.uint32))
        head[6] = append(np.flatnonzero(batch.wants).astype(np.uint32))
        head[9] = append(np.array(self.copies, np.uint32).reshape(-1))
        moves = [self.moves.get(run.sequence, (None, 0)) for run in runs]
        facts = [
            (run.first, run.stop, NONE if old is None else old, new)
            for run, (old, new) in zip(runs, moves, strict=True)
        ]
        head[10] = append(np.array(facts, np.uint32).reshape(-1))
        for number, rope in enumerate(self.ropes):
            head[_ROPES + number] = append(rope.turns(batch.positions).reshape(-1).view(np.uint32))
        head[:5] = self.rows, self.wanted, self.output_at, self.scratch_at, self.terms.stride
        head[7], head[8] = HEAD, self.terms.sets
        head[11:13] = self.largest_at, self.output_rows
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
