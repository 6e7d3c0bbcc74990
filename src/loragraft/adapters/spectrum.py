"""The part of a matrix that a low rank keeps most of: truncated singular value decompositions, for large matrices by
block Krylov iteration (Musco and Musco 2015, arXiv 1504.05477) instead of all singular vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from loragraft.adapters.lora import Floats

Wide = npt.NDArray[np.float64]

_DENSE = 1024
"""The smaller side of a matrix up to which all of its singular values are computed."""
_DEPTH, _MORE = 4, 8
_FIRST = 32


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


def low_rank(matrix: Floats, rank: int | None = None, energy: float | None = None) -> LowRank:
    """`matrix` [out, in] at `rank`, or at the smallest rank that keeps this part of its energy; both: the smaller of
    the two. Ranks are at least 1, and at most the matrix's smaller side."""
    most = min(matrix.shape) if rank is None else min(rank, *matrix.shape)
    total = squared_norm(matrix)
    if not total:
        return LowRank(
            np.zeros((1, matrix.shape[1]), np.float32), np.zeros((matrix.shape[0], 1), np.float32), 1.0
        )
    if min(matrix.shape) <= _DENSE:
        return _cut(_all(matrix), most, energy, total)
    width = most if energy is None else min(_FIRST, most)
    while True:
        if 4 * width >= min(matrix.shape):
            return _cut(_all(matrix), most, energy, total)
        found = _leading(matrix, width)
        reached = float(np.square(found[1][:width]).sum()) / total
        if width >= most or (energy is not None and reached >= energy):
            return _cut(found, most, energy, total)
        width = min(2 * width, most)


def low_rank_product(b: Floats, a: Floats, rank: int) -> LowRank:
    """The best approximation of rank `rank` to b a, without making the product: b [out, k], a [k, in]."""
    left, upper = np.linalg.qr(b.astype(np.float64))
    right, lower = np.linalg.qr(a.T.astype(np.float64))
    u, s, vt = np.linalg.svd(upper @ lower.T)
    total = float(np.square(s).sum())
    return _cut((left @ u, s, (right @ vt.T).T), min(rank, len(s)), None, total or 1.0)


def squared_norm(matrix: Floats) -> float:
    """Of all its values, summed in float64."""
    rows = max(1, (1 << 20) // max(1, matrix.shape[-1]))
    return float(
        sum(
            np.square(matrix[start : start + rows], dtype=np.float64).sum()
            for start in range(0, len(matrix), rows)
        )
    )


_Svd = tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]
"""u [out, k], singular values [k], largest first, vt [k, in]."""


def _cut(svd: _Svd, most: int, energy: float | None, total: float) -> LowRank:
    u, s, vt = svd
    kept = np.cumsum(np.square(s.astype(np.float64))) / total
    count = min(most, len(s))
    if energy is not None:
        count = min(count, int(np.searchsorted(kept, energy * (1 - 1e-12))) + 1)
    b = np.ascontiguousarray(u[:, :count] * s[:count], np.float32)
    a = np.ascontiguousarray(vt[:count], np.float32)
    return LowRank(a, b, min(1.0, float(kept[count - 1])))


def _all(matrix: Floats) -> _Svd:
    """Every singular vector of the smaller side, from the eigenvectors of the Gram matrix in float64."""
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    gram = np.zeros((tall.shape[1],) * 2)
    rows = max(1, (1 << 22) // tall.shape[1])
    for start in range(0, len(tall), rows):
        wide = tall[start : start + rows].astype(np.float64)
        gram += wide.T @ wide
    vectors = np.linalg.eigh(gram)[1][:, ::-1]
    del gram
    long = np.empty(tall.shape)
    for start in range(0, len(tall), rows):
        long[start : start + rows] = tall[start : start + rows] @ vectors
    values = np.linalg.norm(long, axis=0)
    order = np.argsort(-values, kind="stable")
    values = values[order]
    unit = long[:, order] / np.where(values > 0, values, 1)
    short = vectors[:, order].T
    return (unit, values, short) if tall is matrix else (short.T, values, unit.T)


def _leading(matrix: Floats, width: int) -> _Svd:
    """The leading singular triplets, `width` of them to full accuracy where the values decay."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((matrix.shape[1], width + _MORE)).astype(np.float32))[0]
    blocks = [basis]
    for _ in range(_DEPTH):
        basis = np.linalg.qr(matrix.T @ np.linalg.qr(matrix @ blocks[-1])[0])[0]
        blocks.append(basis)
    space = np.linalg.qr(np.concatenate(blocks, axis=1).astype(np.float64))[0]
    image = (matrix @ space.astype(np.float32)).astype(np.float64)
    u, s, vt = np.linalg.svd(image, full_matrices=False)
    return u[:, :width], s[:width], (vt @ space.T)[:width]
