"""The difference of two stored weights, as a matrix that is read in blocks of rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from loragraft.adapters.spectrum import squared_norm
from loragraft.arrays import Floats
from loragraft.formats.source import TensorSource
from loragraft.formats.views import float_rows
from loragraft.quants.types import F32

_CHUNK_WEIGHTS = 1 << 22
#: Weights of a difference that is held in memory, 256 MB: an embedding of 128,000 tokens is read again instead.
_MOST_HELD = 1 << 26


@dataclass(frozen=True, slots=True)
class Difference:
    """`after` - `before`, of their rows from `first` on: [`rows`, columns], float32."""

    before: TensorSource
    after: TensorSource
    first: int
    rows: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows, self.after.columns

    @property
    def is_held(self) -> bool:
        """Whether it is small enough to be held in memory."""
        return self.rows * self.after.columns <= _MOST_HELD

    @property
    def nbytes(self) -> int:
        """What it takes in memory, held or read in blocks."""
        return 4 * (self.rows * self.after.columns if self.is_held else _CHUNK_WEIGHTS)

    def blocks(self) -> Iterator[tuple[int, Floats]]:
        for start, old, new in self._read():
            yield start, new - old

    def held(self) -> tuple[Floats, float]:
        """All of it, and the squared norm of `before`."""
        whole = np.empty(self.shape, np.float32)
        norm = 0.0
        for start, old, new in self._read():
            norm += squared_norm(old)
            np.subtract(new, old, out=whole[start : start + len(new)])
        return whole, norm

    def norms(self) -> tuple[float, float]:
        """The squared norms of `before` and of the difference."""
        before = own = 0.0
        for _, old, new in self._read():
            before += squared_norm(old)
            own += squared_norm(new - old)
        return before, own

    def _read(self) -> Iterator[tuple[int, Floats, Floats]]:
        step = max(1, _CHUNK_WEIGHTS // self.after.columns)
        for start in range(0, self.rows, step):
            span = self.first + start, self.first + min(start + step, self.rows)
            old, new = (float_rows(one.rows(*span), F32) for one in (self.before, self.after))
            yield start, old, new
            for one in (self.before, self.after):
                one.release(*span)


def differ(before: TensorSource, after: TensorSource) -> bool:
    """Whether a value differs."""
    whole = Difference(before, after, 0, after.n_rows)
    return any(block.any() for _, block in whole.blocks())
