"""The part of a matrix that a low rank keeps most of: truncated singular value decompositions, for large matrices by
block Krylov iteration (Musco and Musco 2015, arXiv 1504.05477) instead of all singular vectors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from loragraft.arrays import Floats

Wide = npt.NDArray[np.float64]

_DENSE = 1024
"""The smaller side of a matrix up to which all of its singular values are computed."""
_DEPTH, _MORE = 4, 8
_FIRST = 32
_PIECE = 1 << 22
"""Elements that are summed up in float32, or made float64, at once."""


@dataclass(frozen=True, slots=True)
class LowRank:
    """b a, the best approximation of its rank: a [r, in] has orthonormal rows, b [out, r] the singular values in it."""

    a: Floats
    b: Floats
    energy: float
    """The part of the matrix's squared Frobenius norm that is kept: 0 to 1; 1 for a matrix of zeros."""

    @property
    def rank(self) -> int:
        return int(self.a.shape[0])


class Rows(Protocol):
    """A matrix that is read in blocks of rows, as often as it takes."""

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""

    def blocks(self) -> Iterator[tuple[int, Floats]]:
        """Every block, float32 [n, in], and the row that it begins at, in the rows' order."""


def low_rank(matrix: Floats | Rows, rank: int | None = None, energy: float | None = None) -> LowRank:
    """`matrix` [out, in] at `rank`, or at the smallest rank that keeps this part of its energy; both: the smaller of
    the two. Ranks are at least 1, and at most the matrix's smaller side.

    Memory: for a rank, a few times the result; for an energy, also up to four times the square of the smaller side, in
    float64."""
    rows = _Sides(_InMemory(matrix) if isinstance(matrix, np.ndarray) else matrix)
    out, columns = rows.shape
    most = min(out, columns) if rank is None else min(rank, out, columns)
    total = rows.squared_norm()
    if not total:
        return LowRank(np.zeros((1, columns), np.float32), np.zeros((out, 1), np.float32), 1.0)
    if rows.short <= _DENSE:
        return _cut(_all(rows, np.float64), rows.is_tall, most, energy, total)
    width = most if energy is None else min(_FIRST, most)
    while 4 * width < rows.short:
        found = _leading(rows, width)
        squares = np.square(found.values)
        reached = float(squares.sum()) / total
        if width >= most or (energy is not None and reached >= energy):
            return _cut(found, rows.is_tall, most, energy, total)
        # No further direction holds more than the last one, so at least so many are needed.
        needed = width + ((energy or 1.0) - reached) * total / max(float(squares[-1]), 1e-30)
        width = int(min(max(2 * width, needed), most))
    return _cut(_all(rows, np.float32), rows.is_tall, most, energy, total)


def low_rank_product(b: Floats, a: Floats, rank: int) -> LowRank:
    """The best approximation of rank `rank` to b a, without making the product: b [out, k], a [k, in]."""
    left, upper = np.linalg.qr(b.astype(np.float64))
    right, lower = np.linalg.qr(a.T.astype(np.float64))
    u, s, vt = np.linalg.svd(upper @ lower.T)
    total = float(np.square(s).sum())
    return _cut(_Triplets(right @ vt.T, (left @ u) * s, s), True, min(rank, len(s)), None, total or 1.0)


def squared_norm(matrix: Floats) -> float:
    """Of all its values, summed in float64."""
    rows = max(1, (1 << 20) // max(1, matrix.shape[-1]))
    return float(
        sum(
            np.square(matrix[start : start + rows], dtype=np.float64).sum()
            for start in range(0, len(matrix), rows)
        )
    )


@dataclass(frozen=True, slots=True)
class _Triplets:
    """The largest singular values [k], in falling order, and their vectors. Of those of the matrix's shorter side,
    `short` [n, k] has unit columns, and `long` [m, k] is the matrix times them: the others times the values."""

    short: npt.NDArray[Any]
    long: npt.NDArray[Any]
    values: Wide


@dataclass(frozen=True, slots=True)
class _InMemory:
    matrix: Floats

    @property
    def shape(self) -> tuple[int, int]:
        return self.matrix.shape[0], self.matrix.shape[1]

    def blocks(self) -> Iterator[tuple[int, Floats]]:
        yield 0, self.matrix


@dataclass(frozen=True, slots=True)
class _Sides:
    """A matrix or, if it has more columns than rows, its transpose: it is tall, [m, n] with m >= n."""

    rows: Rows

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows.shape

    @property
    def is_tall(self) -> bool:
        return self.shape[0] >= self.shape[1]

    @property
    def short(self) -> int:
        return min(self.shape)

    def squared_norm(self) -> float:
        return sum(squared_norm(block) for _, block in self.rows.blocks())

    def times(self, right: Floats) -> Floats:
        """The tall matrix times `right` [n, k]: [m, k]."""
        return self._onto_rows(right) if self.is_tall else self._onto_columns(right)

    def transposed_times(self, left: Floats) -> Floats:
        """Its transpose times `left` [m, k]: [n, k]."""
        return self._onto_columns(left) if self.is_tall else self._onto_rows(left)

    def _onto_rows(self, right: Floats) -> Floats:
        result = np.empty((self.shape[0], right.shape[1]), right.dtype)
        for start, block in self.rows.blocks():
            np.matmul(block, right, out=result[start : start + len(block)])
        return result

    def _onto_columns(self, left: Floats) -> Floats:
        result = np.zeros((self.shape[1], left.shape[1]), left.dtype)
        for start, block in self.rows.blocks():
            result += block.T @ left[start : start + len(block)]
        return result

    def gram(self, dtype: type[np.floating[Any]]) -> Wide:
        """The tall matrix's transpose times itself, [n, n]: products in `dtype`, sums of every few rows in float64."""
        gram = np.zeros((self.short, self.short))
        if self.is_tall:
            for _, block in self.rows.blocks():
                for part in _pieces(block, dtype):
                    gram += part.T @ part
            return gram
        whole = np.concatenate([block for _, block in self.rows.blocks()])
        for part in _pieces(whole.T, dtype):
            gram += part.T @ part
        return gram


def _pieces(matrix: Floats, dtype: type[np.floating[Any]]) -> Iterator[npt.NDArray[Any]]:
    rows = max(1, _PIECE // matrix.shape[1])
    for start in range(0, len(matrix), rows):
        yield np.ascontiguousarray(matrix[start : start + rows], dtype)


def _cut(found: _Triplets, tall: bool, most: int, energy: float | None, total: float) -> LowRank:
    kept = np.cumsum(np.square(found.values)) / total
    count = min(most, len(found.values))
    if energy is not None:
        count = min(count, int(np.searchsorted(kept, energy * (1 - 1e-12))) + 1)
    short, long, values = found.short[:, :count], found.long[:, :count], found.values[:count]
    if not tall:
        long, short = short * values, long / np.where(values > 0, values, 1)
    b, a = np.ascontiguousarray(long, np.float32), np.ascontiguousarray(short.T, np.float32)
    return LowRank(a, b, min(1.0, float(kept[count - 1])))


def _all(rows: _Sides, dtype: type[np.floating[Any]]) -> _Triplets:
    """Every singular vector, from the eigenvectors of the Gram matrix of the shorter side."""
    gram = rows.gram(dtype)
    vectors = np.linalg.eigh(gram)[1][:, ::-1]
    del gram
    return _measured(rows.times(np.ascontiguousarray(vectors, dtype)), vectors)


def _measured(long: npt.NDArray[Any], short: npt.NDArray[Any]) -> _Triplets:
    """With the values that `long` has by its lengths, in their order."""
    values = np.sqrt(np.einsum("ij,ij->j", long, long, dtype=np.float64))
    order = np.argsort(-values, kind="stable")
    if not np.array_equal(order, np.arange(len(order))):
        long, short = long[:, order], short[:, order]
    return _Triplets(short, long, values[order])


def _leading(rows: _Sides, width: int) -> _Triplets:
    """The leading singular triplets, `width` of them to full accuracy where the values decay."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((rows.short, width + _MORE)).astype(np.float32))[0]
    blocks = [basis]
    for _ in range(_DEPTH):
        basis = np.linalg.qr(rows.transposed_times(np.linalg.qr(rows.times(blocks[-1]))[0]))[0]
        blocks.append(basis)
    space = np.linalg.qr(np.concatenate(blocks, axis=1).astype(np.float64))[0]
    image = rows.times(space.astype(np.float32))
    gram = np.zeros((space.shape[1],) * 2)
    for part in _pieces(image, np.float64):
        gram += part.T @ part
    turn = np.linalg.eigh(gram)[1][:, : -width - 1 : -1]
    return _measured(image @ turn.astype(np.float32), space @ turn)
