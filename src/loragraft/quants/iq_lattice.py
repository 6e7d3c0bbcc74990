"""IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S: magnitudes in groups that share one code for a point of a grid.

A super-block of 256 has one half-precision scale, every 16 or 32 weights a four-bit one. Magnitudes are digits 2q + 1;
eight (IQ2) or four (IQ3) of them at a time must be a point of the type's grid (`quants.iq_grids`). Signs are stored
apart, as eight bits per eight weights, or as seven with an even number of them set ("even signs").

Source: quantize_row_iq{2_xxs,2_xs,2_s,3_xxs,3_s}_impl and dequantize_row_iq* in ggml-quants.c: one search with other
arguments. IQ2_XXS and IQ2_XS need an importance matrix.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from loragraft.arrays import Bytes, Floats, Ints
from loragraft.quants.arith import F, by_element, bytes_half, half_bytes, nearest_int, running_sum
from loragraft.quants.codec import Codec
from loragraft.quants.iq_grids import Codebook, grid
from loragraft.quants.search import positive

Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Search:
    """How one type searches the scale of its sub-blocks."""

    grid: str
    sub: int
    """Weights under one four-bit scale."""
    tries: int
    step: float
    """Inverse scales tried: (largest digit + i * step) / largest magnitude, for i in -tries .. tries."""
    even_signs: bool
    sigma: float
    """The share of the super-block's mean square in the errors' weights, with an importance matrix ..."""
    plain_sigma: float
    """... and without one: plain_sigma * sigma^2 + x^2."""
    tiny: float
    """Sub-blocks whose largest magnitude is below (zero: equal to) this are skipped."""
    refine: str
    """Which groups are snapped to the grid again at the scale found: those `off` the grid, `all` if any is off it, or
    `always` all."""
    fudge: float = 1.0
    """The stored scale over the one found."""


@dataclass
class Found:
    """Of n sub-blocks: points' numbers [groups, n], sign bits [sub / 8, n], scales [n], and which were skipped [n]."""

    points: Ints
    signs: Ints
    scales: Floats
    skipped: Flags


# ---- the search


def _weights(x: Floats, importance: Floats | None, s: Search) -> Floats:
    """The weights of the squared errors, [rows, cols]."""
    squares = by_element(x * x, 256)
    sigma2 = F(s.sigma) * running_sum(squares) / F(256)
    spread = np.repeat(sigma2, 256).reshape(x.shape)
    if importance is not None:
        return np.asarray(importance * np.sqrt(spread + x * x), np.float32)
    return np.asarray(F(s.plain_sigma) * spread + x * x if s.plain_sigma else x * x, np.float32)


def _split_signs(x: Floats, w: Floats, even: bool) -> tuple[Floats, Ints]:
    """Magnitudes [sub, n] and sign bits [sub / 8, n]. With even signs, an odd group's least costly magnitude becomes
    negative instead."""
    negative = ~(x >= 0)
    size = np.where(negative, -x, x)
    groups = negative.reshape(-1, 8, x.shape[1])
    bits = (groups.astype(np.int32) << np.arange(8, dtype=np.int32)[:, None]).sum(axis=1, dtype=np.int32)
    if even:
        odd = groups.sum(axis=1) % 2 == 1
        least = _first_least((w * x * x).reshape(groups.shape))
        group, block = np.nonzero(odd)
        size[8 * group + least[odd], block] *= F(-1)
        bits[odd] ^= 1 << least[odd]
        bits &= 127
    return size, bits


def _first_least(v: Floats) -> Ints:
    """Of [groups, 8, n], where each column is least; NaN, which compares with nothing, is passed over or stays."""
    least = np.zeros((v.shape[0], v.shape[2]), np.int32)
    lowest = v[:, 0]
    for i in range(1, v.shape[1]):
        less = v[:, i] < lowest
        least[less] = i
        lowest = np.where(less, v[:, i], lowest)
    return least


def _by_group(v: Floats, digits: int) -> Floats:
    """[sub, n] -> [digits, groups * n], group-major."""
    return v.reshape(-1, digits, v.shape[1]).transpose(1, 0, 2).reshape(digits, -1)


def _by_weight(points: Ints, g: Codebook) -> Floats:
    """Points [groups, n] -> their digits' values 2q + 1 [sub, n]."""
    digits = g.points[points]  # [groups, n, digits]
    return (2 * digits.transpose(0, 2, 1).reshape(-1, points.shape[1]) + 1).astype(np.float32)


def _search(x: Floats, importance: Floats | None, s: Search) -> Found:
    g = grid(s.grid)
    w = by_element(_weights(x, importance, s), s.sub)
    size, signs = _split_signs(by_element(x, s.sub), w, s.even_signs)
    n, top = size.shape[1], 2 * g.base - 1
    values = np.arange(1, top + 1, 2, dtype=np.float32)[:, None]
    groups = s.sub // g.digits
    grouped, root = _by_group(size, g.digits), _by_group(np.sqrt(w), g.digits)

    largest = size[0]
    for row in size[1:]:
        largest = np.where(largest > row, largest, row)
    skipped = largest < F(s.tiny) if s.tiny else largest == 0
    if s.refine == "always":
        scale = positive(size, w, g.base + 1)[0]
        largest = scale * F(g.base)
        skipped = skipped | (largest <= 0)
    else:
        scale = np.asarray(largest / F(top), np.float32)

    def snap(inverse: Floats, at: Floats) -> tuple[Ints, Flags]:
        digits = np.clip(nearest_int(F(0.5) * (np.tile(inverse, groups) * grouped - F(1))), 0, g.base - 1)
        points, on_grid = g.snap(digits, grouped, root, np.tile(at, groups), values)
        return points.reshape(groups, n), on_grid.reshape(groups, n)

    def fit(points: Ints) -> tuple[Floats, Floats]:
        q = _by_weight(points, g)
        return running_sum(w * size * q), running_sum(w * q * q)

    best = np.zeros(n, np.float32)
    points = np.full((groups, n), g.index[0], np.int32)
    on_grid = np.full((groups, n), s.refine == "off")
    for i in range(-s.tries, s.tries + 1):
        inverse = np.asarray((F(top) + F(i) * F(s.step)) / largest, np.float32)
        tried, tried_on_grid = snap(inverse, np.asarray(F(1) / inverse, np.float32))
        sumqx, sumq2 = fit(tried)
        better = (sumq2 > 0) & (sumqx * sumqx > best * sumq2)
        scale = np.where(better, sumqx / sumq2, scale)
        best = np.where(better, scale * sumqx, best)
        points[:, better], on_grid[:, better] = tried[:, better], tried_on_grid[:, better]

    again = (scale > 0) & (~on_grid.all(axis=0) | (s.refine == "always"))
    snapped, _ = snap(np.asarray(F(1) / scale, np.float32), scale)
    points = np.where(again & (~on_grid | (s.refine != "off")), snapped, points)
    sumqx, sumq2 = fit(points)
    scale = np.where(again & (sumq2 > 0), sumqx / sumq2, scale)

    signs = np.where(scale < 0, ~signs & (127 if s.even_signs else 255), signs)
    scale = np.where(np.isnan(scale), F(0), np.abs(scale))  # the reference stops at NaN
    return Found(
        np.where(skipped, 0, points), np.where(skipped, 0, signs), np.where(skipped, F(0), scale), skipped
    )


def _super_scales(scales: Floats, s: Search) -> tuple[Bytes, Ints, Flags]:
    """Scales [sub-blocks] -> (d's bytes [blocks, 2], four-bit scales [blocks, 256 / sub], whether all are zero)."""
    per_block = scales.reshape(-1, 256 // s.sub)
    largest = per_block.max(axis=1)
    d = np.asarray(largest / F(31), np.float32)
    steps = np.clip(nearest_int(F(0.5) * ((F(1) / d)[:, None] * per_block - F(1))), 0, 15)
    empty = largest == 0
    return half_bytes(np.where(empty, F(0), d * F(s.fudge))), np.where(empty[:, None], 0, steps), empty


def _per_block(v: Ints, blocks: int) -> Ints:
    """[groups, sub-blocks] -> [blocks, groups of the whole super-block in order]."""
    return np.ascontiguousarray(v.T).reshape(blocks, -1)


def _nibbles(v: Ints) -> Bytes:
    return (v[:, ::2] | v[:, 1::2] << 4).astype(np.uint8)


def _words(v: npt.NDArray[np.uint32]) -> Bytes:
    return np.ascontiguousarray(v.astype("<u4")).view(np.uint8).reshape(len(v), -1)


def _signs_and_scales(signs: Ints, steps: Ints) -> npt.NDArray[np.uint32]:
    """Four times seven sign bits, then a four-bit scale: [blocks, 32] and [blocks, 8] -> [blocks, 8]."""
    s = signs.reshape(-1, 8, 4).astype(np.uint32)
    return np.asarray(
        s[..., 0] | s[..., 1] << 7 | s[..., 2] << 14 | s[..., 3] << 21 | steps.astype(np.uint32) << 28
    )


# ---- reading


def _flags(bits: Bytes | Ints) -> Flags:
    """Sign bits [blocks, 32] -> [blocks, 256]."""
    return (bits[..., None] >> np.arange(8) & 1).astype(bool).reshape(len(bits), -1)


def _with_parity(bits: Ints) -> Ints:
    """Seven sign bits -> eight, an even number of them set."""
    odd = bits ^ bits >> 4
    odd ^= odd >> 2
    odd ^= odd >> 1
    return bits | (odd & 1) << 7


TERNARY_VALUES = np.array([8, 25, 43], np.float32)
IQ3_XXS_VALUES = np.array([4, 12, 20, 28, 36, 44, 52, 62], np.float32)
IQ3_S_VALUES = np.arange(1, 17, 2, dtype=np.float32)


def _read(
    name: str, values: Floats, points: Bytes | Ints, signs: Bytes | Ints, scales: Floats, rows: int
) -> Floats:
    """points [blocks, groups], signs [blocks, 32], scales [blocks, sub-blocks] -> [rows, cols]."""
    magnitude = values[grid(name).points[points]].reshape(len(points), 256)
    magnitude = np.repeat(scales, 256 // scales.shape[1], axis=1) * magnitude
    return np.where(_flags(signs), -magnitude, magnitude).reshape(rows, -1)


def read_nibbles(data: Bytes) -> Ints:
    return np.stack([data & 15, data >> 4], axis=2).reshape(len(data), -1).astype(np.int32)


def block_scale(blocks: Bytes) -> Floats:
    return bytes_half(blocks[:, :2])[:, None]


def half_steps(d: Floats, steps: Ints, factor: float) -> Floats:
    return np.asarray(d * (F(0.5) + steps.astype(np.float32)) * F(factor), np.float32)


# ---- IQ2_XXS: per 32 weights four points, then signs and scale

_IQ2_XXS = Search("IQ2_XXS", 32, 6, 0.1, True, 1, 0, 1e-15, "always")


def _iq2_xxs_quantize(x: Floats, importance: Floats | None) -> Bytes:
    found = _search(x, importance, _IQ2_XXS)
    d, steps, empty = _super_scales(found.scales, _IQ2_XXS)
    points = _per_block(found.points, len(d)).astype(np.uint8).reshape(-1, 8, 4)
    words = _words(_signs_and_scales(_per_block(found.signs, len(d)), steps)).reshape(-1, 8, 4)
    body = np.concatenate([points, words], axis=2).reshape(-1, 64)
    return np.concatenate([d, np.where(empty[:, None], 0, body).astype(np.uint8)], axis=1).reshape(len(x), -1)


def _iq2_xxs_dequantize(data: Bytes) -> Floats:
    blocks = data.reshape(-1, 66)
    body = blocks[:, 2:].reshape(-1, 8, 8)
    words: npt.NDArray[np.uint32] = np.ascontiguousarray(body[..., 4:]).view("<u4")[..., 0]
    signs = _with_parity((words[..., None] >> np.arange(0, 28, 7, dtype=np.uint32) & 127).astype(np.int32))
    scales = half_steps(block_scale(blocks), (words >> 28).astype(np.int32), 0.25)
    points = body[..., :4].reshape(-1, 32)
    return _read("IQ2_XXS", TERNARY_VALUES, points, signs.reshape(-1, 32), scales, len(data))


# ---- IQ2_XS: per 8 weights a point (9 bits) and signs (7 bits); then the scales

_IQ2_XS = Search("IQ2_XS", 16, 9, 0.1, True, 1, 0, 1e-15, "off")


def _iq2_xs_quantize(x: Floats, importance: Floats | None) -> Bytes:
    found = _search(x, importance, _IQ2_XS)
    d, steps, empty = _super_scales(found.scales, _IQ2_XS)
    words = _per_block(found.points | found.signs << 9, len(d)).astype("<u2")
    words[empty] = 0
    return np.concatenate([d, words.view(np.uint8), _nibbles(steps)], axis=1).reshape(len(x), -1)


def _iq2_xs_dequantize(data: Bytes) -> Floats:
    blocks = data.reshape(-1, 74)
    words = np.ascontiguousarray(blocks[:, 2:66]).view("<u2").astype(np.int32)
    scales = half_steps(block_scale(blocks), read_nibbles(blocks[:, 66:]), 0.25)
    return _read("IQ2_XS", TERNARY_VALUES, words & 511, _with_parity(words >> 9), scales, len(data))


# ---- IQ2_S: points' low bytes, signs, points' high bits (2 each), scales

_IQ2_S = Search("IQ2_S", 16, 9, 0.1, False, 2, 0.25, 1e-8, "off", 0.9875)


def _iq2_s_quantize(x: Floats, importance: Floats | None) -> Bytes:
    found = _search(x, importance, _IQ2_S)
    d, steps, _ = _super_scales(found.scales, _IQ2_S)
    points, signs = _per_block(found.points, len(d)), _per_block(found.signs, len(d)).astype(np.uint8)
    high = (points >> 8).reshape(-1, 8, 4)
    qh = (high << np.arange(0, 8, 2)).sum(axis=2).astype(np.uint8)
    low = (points & 255).astype(np.uint8)
    return np.concatenate([d, low, signs, qh, _nibbles(steps)], axis=1).reshape(len(x), -1)


def _iq2_s_dequantize(data: Bytes) -> Floats:
    blocks = data.reshape(-1, 82)
    high = (blocks[:, 66:74, None] >> np.arange(0, 8, 2, dtype=np.uint8) & 3).reshape(-1, 32)
    points = blocks[:, 2:34] | high.astype(np.int32) << 8
    scales = half_steps(block_scale(blocks), read_nibbles(blocks[:, 74:]), 0.25)
    return _read("IQ2_S", TERNARY_VALUES, points, blocks[:, 34:66], scales, len(data))


# ---- IQ3_XXS: points, then signs and scales

_IQ3_XXS = Search("IQ3_XXS", 32, 15, 0.2, True, 2, 0, 1e-8, "off", 1.0125)


def _iq3_xxs_quantize(x: Floats, importance: Floats | None) -> Bytes:
    found = _search(x, importance, _IQ3_XXS)
    d, steps, empty = _super_scales(found.scales, _IQ3_XXS)
    points = _per_block(found.points, len(d)).astype(np.uint8)
    words = _words(_signs_and_scales(_per_block(found.signs, len(d)), steps))
    body = np.where(empty[:, None], 0, np.concatenate([points, words], axis=1)).astype(np.uint8)
    return np.concatenate([d, body], axis=1).reshape(len(x), -1)


def _iq3_xxs_dequantize(data: Bytes) -> Floats:
    blocks = data.reshape(-1, 98)
    words = np.ascontiguousarray(blocks[:, 66:]).view("<u4")
    signs = _with_parity((words[..., None] >> np.arange(0, 28, 7, dtype=np.uint32) & 127).astype(np.int32))
    scales = half_steps(block_scale(blocks), (words >> 28).astype(np.int32), 0.5)
    return _read("IQ3_XXS", IQ3_XXS_VALUES, blocks[:, 2:66], signs.reshape(-1, 32), scales, len(data))


# ---- IQ3_S: points' low bytes, their ninth bits, signs, scales

_IQ3_S = Search("IQ3_S", 32, 9, 0.2, False, 2, 0, 0, "all", 1.033)


def _close_up(v: Ints, skipped: Flags) -> Ints:
    """Of every super-block, the sub-blocks that were not skipped moved to the front: v [blocks, 8, m].

    The reference does not advance its output past a skipped sub-block, so the codes and signs of those after it are
    stored one sub-block too early (their ninth bits and scales are not). Kept for equal bytes.
    """
    order = np.argsort(skipped, axis=1, kind="stable")
    return np.take_along_axis(v, order[:, :, None], axis=1)


def _iq3_s_quantize(x: Floats, importance: Floats | None) -> Bytes:
    found = _search(x, importance, _IQ3_S)
    d, steps, _ = _super_scales(found.scales, _IQ3_S)
    n, skipped = len(d), found.skipped.reshape(len(d), 8)
    points = _per_block(found.points, n).reshape(n, 8, 8)
    qh = ((points >> 8) << np.arange(8)).sum(axis=2).astype(np.uint8)
    low = _close_up(points & 255, skipped).reshape(n, 64).astype(np.uint8)
    signs = _close_up(_per_block(found.signs, n).reshape(n, 8, 4), skipped).reshape(n, 32).astype(np.uint8)
    return np.concatenate([d, low, qh, signs, _nibbles(steps)], axis=1).reshape(len(x), -1)


def _iq3_s_dequantize(data: Bytes) -> Floats:
    blocks = data.reshape(-1, 110)
    ninth = (blocks[:, 66:74, None] >> np.arange(8, dtype=np.uint8) & 1).reshape(-1, 64)
    points = blocks[:, 2:66] | ninth.astype(np.int32) << 8
    scales = block_scale(blocks) * (1 + 2 * read_nibbles(blocks[:, 106:])).astype(np.float32)
    return _read("IQ3_S", IQ3_S_VALUES, points, blocks[:, 74:106], scales, len(data))


CODECS = {
    "IQ2_XXS": Codec(_iq2_xxs_quantize, _iq2_xxs_dequantize),
    "IQ2_XS": Codec(_iq2_xs_quantize, _iq2_xs_dequantize),
    "IQ2_S": Codec(_iq2_s_quantize, _iq2_s_dequantize),
    "IQ3_XXS": Codec(_iq3_xxs_quantize, _iq3_xxs_dequantize),
    "IQ3_S": Codec(_iq3_s_quantize, _iq3_s_dequantize),
}
