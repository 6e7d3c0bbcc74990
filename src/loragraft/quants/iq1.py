"""IQ1_S and IQ1_M: weights of -1, 0 or 1, eight at a time a point of one grid, shifted up or down by 1/8.

IQ1_S has a scale (three bits) and a shift per 32 weights, IQ1_M a scale per 16 and a shift per 8; the super-block's
half-precision scale is spread over IQ1_M's scales. The digits come from an exhaustive search: the weights of a
sub-block are sorted, and every way to cut them into three runs (-1, 0, 1) is scored with every shift.

Source: quantize_row_iq1_{s,m}_impl, iq1_find_best_neighbour2 and dequantize_row_iq1_{s,m} in ggml-quants.c. IQ1_S needs
an importance matrix.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from loragraft.arrays import Bytes, Floats, Ints
from loragraft.quants.arith import (
    F,
    by_element,
    bytes_half,
    half_bytes,
    nearest_int,
    result_bytes,
    running_sum,
)
from loragraft.quants.codec import Codec
from loragraft.quants.iq_grids import grid

DELTA = F(0.125)
_UP = np.array([-1, 0, 1], np.float32) + DELTA
_DOWN = np.array([-1, 0, 1], np.float32) - DELTA
_LOWEST = np.finfo(np.float32).min


def _weights(x: Floats, importance: Floats | None) -> Floats:
    if importance is None:
        return x * x
    sigma2 = F(2) * running_sum(by_element(x * x, 256)) / F(256)
    return np.asarray(importance * np.sqrt(np.repeat(sigma2, 256).reshape(x.shape) + x * x), np.float32)


def _prefix_sums(terms: Floats) -> Floats:
    """[m, n] -> [m + 1, n], each row the one before plus a term."""
    sums = np.zeros((len(terms) + 1, *terms.shape[1:]), np.float32)
    for j, term in enumerate(terms):
        sums[j + 1] = sums[j] + term
    return sums


def _cuts(n: int) -> Iterator[tuple[int, int]]:
    return ((i, j) for i in range(n + 1) for j in range(i, n + 1))


class _Best:
    """The best cut so far of every sub-block: its scale, where it cuts, and its shift; compared as the reference does,
    one after the other."""

    def __init__(self, n: int) -> None:
        self.score = np.full(n, _LOWEST, np.float32)
        self.scale = np.zeros(n, np.float32)
        self.low, self.high, self.shift = (np.full(n, -1, np.int32) for _ in range(3))

    def offer(self, sumqx: Floats, sumq2: Floats, low: int, high: int, shift: int) -> None:
        better = (sumq2 > 0) & (sumqx * sumqx > self.score * sumq2)
        if better.any():
            self.scale[better] = sumqx[better] / sumq2[better]
            self.score[better] = self.scale[better] * sumqx[better]
            self.low[better], self.high[better], self.shift[better] = low, high, shift

    def digits(self, order: npt.NDArray[np.intp]) -> Ints:
        """Of every weight, its run; `order`: [m, n], the weights from the least to the largest."""
        rank = np.empty_like(order)
        np.put_along_axis(rank, order, np.broadcast_to(np.arange(len(order))[:, None], order.shape), axis=0)
        runs = (rank >= self.low).astype(np.int32) + (rank >= self.high)
        return np.where(self.scale < 0, 2 - runs, runs)


def _snap(digits: Ints, x: Floats, w: Floats, scale: Floats, values: Floats) -> tuple[Ints, Floats]:
    """The grid's points [groups, n] for digits [sub, n], and the scale refitted where one was off the grid.

    values: [groups, 3, n], what the digits of each group stand for.
    """
    g = grid("IQ1")
    points, on_grid = [], np.ones(x.shape[1], bool)
    for k in range(len(x) // 8):
        part = slice(8 * k, 8 * k + 8)
        point, on = g.snap(digits[part], x[part], w[part], scale, values[k])
        points.append(point)
        on_grid &= on
    found = np.stack(points)
    terms = list(_products(found, x, w, values))
    sumqx, sumq2 = running_sum(t[0] for t in terms), running_sum(t[1] for t in terms)
    refit = ~on_grid & (sumqx > 0) & (sumq2 > 0)
    scale = np.where(refit, sumqx / sumq2, scale)
    return found, np.where(scale >= 0, scale, F(0))  # the reference stops at NaN


def _products(points: Ints, x: Floats, w: Floats, values: Floats) -> Iterator[tuple[Floats, Floats]]:
    """w q x and w q^2 of every weight in turn."""
    g = grid("IQ1")
    columns = np.arange(x.shape[1])
    for j in range(len(x)):
        q = values[j // 8][g.points[points[j // 8], j % 8], columns]
        yield w[j] * q * x[j], w[j] * q * q


def _steps(scales: Floats) -> tuple[Floats, Ints]:
    """Scales [blocks, sub-blocks] -> (their largest / 15 [blocks], three-bit scales)."""
    d = np.asarray(scales.max(axis=1) / F(15), np.float32)
    return d, np.clip(nearest_int(F(0.5) * ((F(1) / d)[:, None] * scales - F(1))), 0, 7)


# ---- IQ1_S: d, points' low bytes, then per 32 weights four times three high bits, the scale and the shift's sign


def _iq1_s_quantize(x: Floats, importance: Floats | None) -> Bytes:
    blocks, w = by_element(x, 32), by_element(_weights(x, importance), 32)
    skipped = np.abs(blocks).max(axis=0) < F(1e-12)
    order = np.argsort(blocks, axis=0, kind="stable")
    sx = _prefix_sums(np.take_along_axis(w * blocks, order, axis=0))
    sw = _prefix_sums(np.take_along_axis(w, order, axis=0))
    best = _Best(blocks.shape[1])
    for low, high in _cuts(32):
        x1, x2, x3 = sx[low] - sx[0], sx[high] - sx[low], sx[32] - sx[high]
        w1, w2, w3 = sw[low] - sw[0], sw[high] - sw[low], sw[32] - sw[high]
        for sign, v in ((1, _UP), (-1, _DOWN)):
            sumqx = x1 * v[0] + x2 * v[1] + x3 * v[2]
            sumq2 = w1 * v[0] * v[0] + w2 * v[1] * v[1] + w3 * v[2] * v[2]
            best.offer(sumqx, sumq2, low, high, sign)

    skipped |= best.low < 0
    shift = np.where(skipped, 1, np.where(best.scale < 0, -best.shift, best.shift))
    values = np.where(shift == 1, _UP[:, None], _DOWN[:, None])
    points, scale = _snap(best.digits(order), blocks, w, np.abs(best.scale), np.stack([values] * 4))
    points, scale = np.where(skipped, 0, points), np.where(skipped, F(0), scale)

    scales = scale.reshape(-1, 8)
    d, steps = _steps(scales)
    empty = scales.max(axis=1) == 0
    steps = np.where(empty[:, None], 0, steps | np.where(shift.reshape(-1, 8) == -1, 8, 0))
    by_block = points.T.reshape(len(d), 8, 4)
    qh = ((by_block >> 8) << np.arange(0, 12, 3)).sum(axis=2) | steps << 12
    low_bytes = (by_block & 255).astype(np.uint8).reshape(-1, 32)
    stored = half_bytes(np.where(empty, F(0), d * F(1.125)))
    return np.concatenate([stored, low_bytes, qh.astype("<u2").view(np.uint8)], axis=1).reshape(len(x), -1)


def _iq1_s_dequantize(data: Bytes) -> Floats:
    blocks = data.reshape(-1, 50)
    qh = np.ascontiguousarray(blocks[:, 34:]).view("<u2").astype(np.int32)
    high = (qh[:, :, None] >> np.arange(0, 12, 3) & 7).reshape(-1, 32)
    scale = bytes_half(blocks[:, :2])[:, None] * (2 * (qh >> 12 & 7) + 1).astype(np.float32)
    delta = np.where(qh & 0x8000, -DELTA, DELTA)
    digits = grid("IQ1").points[blocks[:, 2:34] | high << 8].reshape(-1, 8, 32)
    values: Floats = scale[:, :, None] * ((digits - 1).astype(np.float32) + delta[:, :, None])
    return values.reshape(len(data), -1)


# ---- IQ1_M: points' low bytes, per 8 weights three high bits and the shift's sign, the scales with d in their top bits


def _iq1_m_quantize(x: Floats, importance: Floats | None) -> Bytes:
    blocks, w = by_element(x, 16), by_element(_weights(x, importance), 16)
    skipped = np.abs(blocks).max(axis=0) < F(1e-7)
    best = _Best(blocks.shape[1])
    order = np.argsort(blocks, axis=0, kind="stable")
    _search_halves(blocks, w, order, best)

    skipped |= best.low < 0
    # 0: both halves up, 1: up and down, 2: down and up, 3: both down
    shift = np.where(skipped, 0, np.where(best.scale < 0, 3 - best.shift, best.shift))
    values = np.where(np.stack([shift < 2, shift % 2 == 0])[:, None], _UP[:, None], _DOWN[:, None])
    points, scale = _snap(best.digits(order), blocks, w, np.abs(best.scale), values)
    points, scale = np.where(skipped, 0, points), np.where(skipped, F(0), scale)

    scales = scale.reshape(-1, 16)
    d, steps = _steps(scales)
    odd = (2 * steps + 1).astype(np.float32).reshape(-1)
    by_weight = [
        np.stack(pair) for pair in _products(points, blocks, w, values * odd)
    ]  # 16 times [2, sub-blocks]
    in_order = np.stack(by_weight).reshape(16, 2, -1, 16).transpose(3, 0, 1, 2).reshape(256, 2, -1)
    sumqx, sumq2 = running_sum(in_order)
    d = np.where(sumq2 > 0, sumqx / sumq2, d)

    empty = scales.max(axis=1) == 0
    by_block = points.T.reshape(len(d), 16, 2)
    masks = np.where(empty[:, None], 0, np.array([0x00, 0x80, 0x08, 0x88])[shift.reshape(-1, 16)])
    qh = by_block[:, :, 0] >> 8 | by_block[:, :, 1] >> 8 << 4 | masks
    packed = (steps.reshape(-1, 4, 4) << np.arange(0, 12, 3)).sum(axis=2)
    half = result_bytes(d * F(1.1125)).view("<u2").astype(np.int32)
    packed |= (half >> np.arange(0, 16, 4) & 15) << 12
    packed[empty] = 0
    low_bytes = (by_block & 255).astype(np.uint8).reshape(-1, 32)
    parts = [low_bytes, qh.astype(np.uint8), packed.astype("<u2").view(np.uint8)]
    return np.concatenate(parts, axis=1).reshape(len(x), -1)


def _search_halves(x: Floats, w: Floats, order: npt.NDArray[np.intp], best: _Best) -> None:
    """Offers every cut with every pair of shifts to `best`. The sums are kept for each half of eight, and written in
    terms of the prefix sums at the two cuts, because neighbouring values differ by one whatever the shift."""
    n = len(x)
    wx = np.take_along_axis(w * x, order, axis=0)
    ws = np.take_along_axis(w, order, axis=0)
    px, pw = np.zeros((2, 2, n + 1, x.shape[1]), np.float32)
    for h in range(2):
        mine = order // 8 == h
        for j in range(n):
            px[h, j + 1] = np.where(mine[j], px[h, j] + wx[j], px[h, j])
            pw[h, j + 1] = np.where(mine[j], pw[h, j] + ws[j], pw[h, j])
    squares = [v * v for v in (_UP, _DOWN)]
    for low, high in _cuts(n):
        qx, q2 = [], []  # [shift][half]
        for v, square in zip((_UP, _DOWN), squares, strict=True):
            qx.append([px[h, n] * v[2] - (px[h, low] + px[h, high]) for h in range(2)])
            q2.append(
                [
                    pw[h, n] * v[2] * v[2]
                    + pw[h, low] * (square[0] - square[1])
                    + pw[h, high] * (square[1] - square[2])
                    for h in range(2)
                ]
            )
        for k in range(4):
            a, b = k // 2, k % 2
            best.offer(qx[a][0] + qx[b][1], q2[a][0] + q2[b][1], low, high, k)


def _iq1_m_dequantize(data: Bytes) -> Floats:
    blocks = data.reshape(-1, 56)
    sc = np.ascontiguousarray(blocks[:, 48:]).view("<u2").astype(np.int32)
    half = (sc >> 12 << np.arange(0, 16, 4)).sum(axis=1).astype("<u2")
    steps = (sc[:, :, None] >> np.arange(0, 12, 3) & 7).reshape(-1, 16)
    scale = bytes_half(half[:, None].view(np.uint8))[:, None] * (2 * steps + 1).astype(np.float32)
    qh = np.stack([blocks[:, 32:48] & 15, blocks[:, 32:48] >> 4], axis=2).reshape(-1, 32).astype(np.int32)
    delta = np.where(qh & 8, -DELTA, DELTA)
    digits = grid("IQ1").points[blocks[:, :32] | (qh & 7) << 8]
    values: Floats = np.repeat(scale, 2, axis=1)[:, :, None] * (
        (digits - 1).astype(np.float32) + delta[:, :, None]
    )
    return values.reshape(len(data), -1)


CODECS = {
    "IQ1_S": Codec(_iq1_s_quantize, _iq1_s_dequantize),
    "IQ1_M": Codec(_iq1_m_quantize, _iq1_m_dequantize),
}
