"""The searches for a sub-block's scale, and offset, that the K types and the weighted legacy types share.

Each takes weights `x` and their importance `w` as float32 [n, blocks] (n = 16 or 32 weights of a sub-block, or the 8
or 16 scales of a super-block) and works on all blocks at once; the loops over candidates keep the reference's order,
because each candidate starts from what the one before left behind.

Source: make_qx_quants, make_qkx2_quants, make_qkx3_quants, make_qp_quants and make_q3_quants of ggml-quants.c.
"""

from __future__ import annotations

import numpy as np

from loragraft.arrays import Floats, Ints
from loragraft.quants.arith import F, nearest_int, running_sum

TINY = F(1e-15)  # GROUP_MAX_EPS: a block below it counts as zero


def largest(x: Floats) -> Floats:
    """Of every block, the weight of largest magnitude with its sign; the first one wins; never -0, and never NaN."""
    size: Floats = np.zeros_like(x[0])
    top: Floats = np.zeros_like(x[0])
    for row in x:
        larger = np.abs(row) > size
        size = np.where(larger, np.abs(row), size)
        top = np.where(larger, row, top)
    return top


def symmetric(x: Floats, w: Floats, half: int) -> tuple[Floats, Ints]:
    """Scales around zero: the largest weight at code 0, then 18 more scales near it; keeps the least squared error.

    Returns scales [blocks] and codes 0 .. 2 * half - 1 (half stands for zero) [n, blocks]; a zero block gets scale 0
    and codes 0. (make_qx_quants, rmse_type 1)
    """
    top = largest(x)
    wx = w * x

    def fit(inverse: Floats) -> tuple[Ints, Floats, Floats]:
        codes = np.clip(nearest_int(inverse * x), -half, half - 1)
        level = codes.astype(np.float32)
        return codes, running_sum(wx * level), running_sum(w * level * level)

    codes, sum_lx, sum_l2 = fit(F(-half) / top)
    scale = np.where(sum_l2 != 0, sum_lx / sum_l2, F(0))
    best = scale * sum_lx
    for step in range(-9, 10):
        if step == 0:
            continue
        tried, sum_lx, sum_l2 = fit(-(F(half) + F(0.1) * F(step)) / top)
        better = (sum_l2 > 0) & (sum_lx * sum_lx > best * sum_l2)
        codes = np.where(better, tried, codes)
        scale = np.where(better, sum_lx / sum_l2, scale)
        best = np.where(better, scale * sum_lx, best)
    zero = np.abs(top) < TINY
    return np.where(zero, F(0), scale), np.where(zero, np.int32(0), codes + np.int32(half))


def affine(
    x: Floats, w: Floats, top: int, first: float, step: float, tries: int, absolute: bool = False
) -> tuple[Floats, Floats, Ints]:
    """Scale and offset: `tries` + 1 inverse scales from (top + first) up by `step`, each with a least-squares fit.

    An accepted fit moves the offset from which the next candidate starts. `absolute` minimizes the weighted absolute
    error, else the squared one. Returns scales, negated minima (both [blocks]) and codes 0 .. top [n, blocks].
    (make_qkx2_quants and make_qkx3_quants: the same search with other arguments)
    """
    n = len(x)
    low, high = x[0], x[0]
    sum_w = w[0]
    sum_x = sum_w * x[0]
    for i in range(1, n):
        low = np.where(x[i] < low, x[i], low)
        high = np.where(x[i] > high, x[i], high)
        sum_w = sum_w + w[i]
        sum_x = sum_x + w[i] * x[i]
    low = np.where(low > 0, F(0), low)
    flat = high == low

    def codes_for(inverse: Floats) -> Ints:
        return np.clip(nearest_int(inverse * (x - low)), 0, top)

    def error_of(codes: Ints, scale: Floats, offset: Floats) -> Floats:
        diff = scale * codes.astype(np.float32) + offset - x
        return running_sum(w * (np.abs(diff) if absolute else diff * diff))

    inverse = F(top) / (high - low)
    scale = F(1) / inverse
    codes = codes_for(inverse)
    best = error_of(codes, scale, low)
    flat_low = low
    for k in range(tries + 1):
        tried = codes_for((F(first) + F(step) * F(k) + F(top)) / (high - low))
        level = tried.astype(np.float32)
        wl = w * level
        sum_l = running_sum(wl)
        sum_l2 = running_sum(wl * level)
        sum_xl = running_sum(wl * x)
        det = sum_w * sum_l2 - sum_l * sum_l
        new_scale = (sum_w * sum_xl - sum_x * sum_l) / det
        new_low = (sum_l2 * sum_x - sum_l * sum_xl) / det
        above = new_low > 0
        new_low = np.where(above, F(0), new_low)
        new_scale = np.where(above, sum_xl / sum_l2, new_scale)
        error = error_of(tried, new_scale, new_low)
        better = (det > 0) & (error < best)
        codes = np.where(better, tried, codes)
        best = np.where(better, error, best)
        scale = np.where(better, new_scale, scale)
        low = np.where(better, new_low, low)
    return (
        np.where(flat, F(0), scale),
        -np.where(flat, flat_low, low),
        np.where(flat, np.int32(0), codes),
    )


def positive(x: Floats, w: Floats, top: int) -> tuple[Floats, Ints]:
    """A scale for values that are not negative: nine inverse scales, then up to five sweeps moving one code at a time.

    Codes are kept in a byte, as the reference's are: a negative value wraps. Returns scales [blocks] and codes
    0 .. 255 [n, blocks]. (make_qp_quants)
    """
    n = len(x)
    high = np.zeros_like(x[0])
    for i in range(n):
        high = np.where(high > x[i], high, x[i])
    inverse = F(top) / high
    scale = F(1) / inverse

    def error_of(codes: Ints, scale: Floats) -> Floats:
        diff = x - scale * codes.astype(np.float32)
        return running_sum(w * diff * diff)

    best = error_of(nearest_int(inverse * x) & 255, scale)
    for step in range(-4, 5):
        if step == 0:
            continue
        tried = (F(0.1) * F(step) + F(top)) / high
        error = error_of(np.minimum(top, nearest_int(tried * x)), F(1) / tried)
        better = error < best
        best = np.where(better, error, best)
        inverse = np.where(better, tried, inverse)
    codes = np.minimum(top, nearest_int(inverse * x))
    wx = w * x
    level = codes.astype(np.float32)
    sum_lx = running_sum(wx * level)
    sum_l2 = running_sum(w * level * level)
    codes = codes & 255
    for _ in range(5):
        changed = False
        for i in range(n):
            level = codes[i].astype(np.float32)
            lx = sum_lx - wx[i] * level
            l2 = sum_l2 - w[i] * level * level
            moved = np.minimum(top, nearest_int(x[i] * l2 / lx))
            level = moved.astype(np.float32)
            new_lx = lx + wx[i] * level
            new_l2 = l2 + w[i] * level * level
            better = (lx > 0) & (l2 > 0) & (moved != codes[i])
            better &= new_lx * new_lx * sum_l2 > sum_lx * sum_lx * new_l2
            codes[i] = np.where(better, moved & 255, codes[i])
            sum_lx = np.where(better, new_lx, sum_lx)
            sum_l2 = np.where(better, new_l2, sum_l2)
            changed |= bool(better.any())
        if not changed:
            break
    zero = high < TINY
    scale = np.where(sum_l2 > 0, sum_lx / sum_l2, F(0))
    return np.where(zero, F(0), scale), np.where(zero, np.int32(0), codes)


def sweeps(x: Floats, half: int) -> tuple[Floats, Ints]:
    """A scale around zero by rounding to nearest and up to five sweeps that move one code at a time.

    The weight of a weight is its square. Returns scales [blocks] and codes 0 .. 2 * half - 1 [n, blocks]; a zero block
    gets scale 0 and codes 0. (make_q3_quants with do_rmse)
    """
    n = len(x)
    top = largest(x)
    w = x * x
    wx = w * x
    codes = np.clip(nearest_int(F(-half) / top * x), -half, half - 1)
    level = codes.astype(np.float32)
    sum_lx = running_sum(wx * level)
    sum_l2 = running_sum(w * level * level)
    for _ in range(5):
        changed = False
        for i in range(n):
            level = codes[i].astype(np.float32)
            lx = sum_lx - wx[i] * level
            l2 = sum_l2 - w[i] * level * level
            moved = np.clip(nearest_int(x[i] * l2 / lx), -half, half - 1)
            level = moved.astype(np.float32)
            new_lx = lx + wx[i] * level
            new_l2 = l2 + w[i] * level * level
            better = (lx > 0) & (moved != codes[i]) & (new_l2 > 0)
            better &= new_lx * new_lx * sum_l2 > sum_lx * sum_lx * new_l2
            codes[i] = np.where(better, moved, codes[i])
            sum_lx = np.where(better, new_lx, sum_lx)
            sum_l2 = np.where(better, new_l2, sum_l2)
            changed |= bool(better.any())
        if not changed:
            break
    zero = np.abs(top) < TINY
    scale = np.where(sum_l2 > 0, sum_lx / sum_l2, F(0))
    return np.where(zero, F(0), scale), np.where(zero, np.int32(0), codes + np.int32(half))
