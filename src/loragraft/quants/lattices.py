"""Rounding with error feedback for IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS and IQ3_S: a group of weights goes to a point of
its type's codebook at once.

As in `quants.feedback`, of which this is the form for blocks (LDLQ with vector codebooks; Tseng et al. 2024,
arXiv:2402.04396): with H = (I + F) D (I + F)^T, D diagonal but for blocks of 8 columns and F strictly upper triangular
by blocks, the cost is the sum over the blocks b of (t_b - q_b) D_b (t_b - q_b)^T, t_b = w_b + sum over a < b of
(w_a - q_a) F_ab. A group's signs are those of its target, its point is the best of all under D_b. Sweeps follow, in
which a group moves to what is best while all others stay as they are. The scales stay llama-quantize's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from loragraft.arrays import Bytes, Floats, Ints
from loragraft.quants import iq_lattice, native
from loragraft.quants.arranged import Moments
from loragraft.quants.feedback import TILE
from loragraft.quants.iq_grids import grid
from loragraft.system.threads import in_threads

#: Columns that have their signs together.
GROUP = 8
SWEEPS = 2


@dataclass(frozen=True)
class Lattice:
    """A type's codebook: `values` of its digits; `even_signs`: whether a group has an even number of minus signs.
    `scales_of`: rows -> what magnitudes are multiplied by, float32 [rows, cols / n]; `joined`: rows with other points
    [rows, cols / digits] and sign bits [rows, cols / 8]."""

    name: str
    values: Floats
    even_signs: bool
    scales_of: Callable[[Bytes], Floats]
    joined: Callable[[Bytes, Ints, Ints], Bytes]

    def magnitudes(self) -> Floats:
        """float32 [points, digits]"""
        return _magnitudes(self.name, self.values.tobytes())


@cache
def _magnitudes(name: str, values: bytes) -> Floats:
    return np.frombuffer(values, np.float32)[grid(name).points]


def _blocks(data: Bytes, size: int) -> Bytes:
    return data.reshape(-1, size)


def _rows(scales: Floats, data: Bytes) -> Floats:
    return scales.reshape(len(data), -1)


def _word_scales(data: Bytes, size: int, at: int, step: int, factor: float) -> Floats:
    """Of types whose scale is in the high bits of a word of signs."""
    blocks = _blocks(data, size)
    words = np.ascontiguousarray(blocks[:, at:].reshape(len(blocks), 8, step)[..., -4:]).view("<u4")[..., 0]
    return _rows(
        iq_lattice.half_steps(iq_lattice.block_scale(blocks), (words >> 28).astype(np.int32), factor), data
    )


def _nibble_scales(data: Bytes, size: int, at: int) -> Floats:
    blocks = _blocks(data, size)
    steps = iq_lattice.read_nibbles(blocks[:, at:])
    return _rows(iq_lattice.half_steps(iq_lattice.block_scale(blocks), steps, 0.25), data)


def _iq3_s_scales(data: Bytes) -> Floats:
    blocks = _blocks(data, 110)
    steps = (1 + 2 * iq_lattice.read_nibbles(blocks[:, 106:])).astype(np.float32)
    return _rows(iq_lattice.block_scale(blocks) * steps, data)


def _with_signs(words: Any, signs: Ints) -> Any:
    """Words with other seven bits of four groups' signs."""
    bits = (signs.reshape(-1, 8, 4) & 127).astype(np.uint32)
    low = bits[..., 0] | bits[..., 1] << 7 | bits[..., 2] << 14 | bits[..., 3] << 21
    return (words & np.uint32(0xF0000000)) | low


def _iq2_xxs(data: Bytes, points: Ints, signs: Ints) -> Bytes:
    blocks = _blocks(data, 66).copy()
    body = blocks[:, 2:].reshape(-1, 8, 8)
    words = np.ascontiguousarray(body[..., 4:]).view("<u4")[..., 0]
    body[..., :4] = points.reshape(-1, 8, 4)
    body[..., 4:] = (
        np.ascontiguousarray(_with_signs(words, signs).astype("<u4")).view(np.uint8).reshape(-1, 8, 4)
    )
    blocks[:, 2:] = body.reshape(-1, 64)
    return blocks.reshape(data.shape)


def _iq2_xs(data: Bytes, points: Ints, signs: Ints) -> Bytes:
    blocks = _blocks(data, 74).copy()
    words = (points.reshape(-1, 32) | (signs.reshape(-1, 32) & 127) << 9).astype("<u2")
    blocks[:, 2:66] = np.ascontiguousarray(words).view(np.uint8)
    return blocks.reshape(data.shape)


def _iq2_s(data: Bytes, points: Ints, signs: Ints) -> Bytes:
    blocks = _blocks(data, 82).copy()
    high = (points.reshape(-1, 8, 4) >> 8) << np.arange(0, 8, 2)
    blocks[:, 2:34], blocks[:, 34:66] = points.reshape(-1, 32) & 255, signs.reshape(-1, 32)
    blocks[:, 66:74] = high.sum(axis=2)
    return blocks.reshape(data.shape)


def _iq3_xxs(data: Bytes, points: Ints, signs: Ints) -> Bytes:
    blocks = _blocks(data, 98).copy()
    words = np.ascontiguousarray(blocks[:, 66:]).view("<u4")
    blocks[:, 2:66] = points.reshape(-1, 64)
    blocks[:, 66:] = np.ascontiguousarray(_with_signs(words, signs).astype("<u4")).view(np.uint8)
    return blocks.reshape(data.shape)


def _iq3_s(data: Bytes, points: Ints, signs: Ints) -> Bytes:
    blocks = _blocks(data, 110).copy()
    blocks[:, 2:66], blocks[:, 74:106] = points.reshape(-1, 64) & 255, signs.reshape(-1, 32)
    blocks[:, 66:74] = ((points.reshape(-1, 8, 8) >> 8) << np.arange(8)).sum(axis=2)
    return blocks.reshape(data.shape)


_TWO, _THREE = iq_lattice.TERNARY_VALUES, iq_lattice.IQ3_XXS_VALUES
LATTICES = {
    "IQ2_XXS": Lattice("IQ2_XXS", _TWO, True, lambda data: _word_scales(data, 66, 2, 8, 0.25), _iq2_xxs),
    "IQ2_XS": Lattice("IQ2_XS", _TWO, True, lambda data: _nibble_scales(data, 74, 66), _iq2_xs),
    "IQ2_S": Lattice("IQ2_S", _TWO, False, lambda data: _nibble_scales(data, 82, 74), _iq2_s),
    "IQ3_XXS": Lattice("IQ3_XXS", _THREE, True, lambda data: _word_scales(data, 98, 66, 4, 0.5), _iq3_xxs),
    "IQ3_S": Lattice("IQ3_S", iq_lattice.IQ3_S_VALUES, False, _iq3_s_scales, _iq3_s),
}


def rounded(
    w: Floats,
    name: str,
    data: Bytes,
    values: Floats,
    moments: Moments,
    *,
    sweeps: int = SWEEPS,
    threads: int = 1,
) -> tuple[Bytes, Floats, Floats]:
    """`w` float32 [rows, cols] rounded on the lattice of the type `name`, with the scales of `data`, which means
    `values`; and what each row costs so and cost before, float32 [rows], in units of the moments' mean.

    The numbers do not depend on the threads, which rows are shared out over.
    """

    def run(first: int) -> tuple[Bytes, Floats, Floats]:
        rows = slice(first, first + TILE)
        loops = _Loops(w[rows], LATTICES[name], data[rows], values[rows], moments)
        before = loops.losses()
        loops.forward()
        for _ in range(sweeps):
            loops.sweep()
        return loops.joined(), loops.losses(), before

    parts = in_threads(run, range(0, len(w), TILE), threads)
    found, after, before = (np.concatenate(column) for column in zip(*parts, strict=True))
    return found, after, before


def swept(
    w: Floats, name: str, data: Bytes, values: Floats, moments: Moments, *, sweeps: int = 1, threads: int = 1
) -> Bytes:
    """What sweeps alone make of `data`, which means `values`: groups move where that costs less."""

    def run(first: int) -> Bytes:
        rows = slice(first, first + TILE)
        loops = _Loops(w[rows], LATTICES[name], data[rows], values[rows], moments)
        loops.read(values[rows])
        for _ in range(sweeps):
            loops.sweep()
        return loops.joined()

    return np.concatenate(in_threads(run, range(0, len(w), TILE), threads))


@dataclass(frozen=True)
class _Metric:
    """How a group's errors count: `whole` [8, 8], and in turn part by part: `parts` [8 / digits, digits, digits], with
    `next` [digits, digits], what the first part's errors do to the second's target."""

    whole: Floats
    parts: list[Floats]
    next: Floats | None

    def of(self, errors: Floats) -> Floats:
        return _dot(native.product(errors, self.whole), errors)


def _dot(a: Floats, b: Floats) -> Floats:
    return np.asarray((a * b).sum(axis=-1), np.float32)


def _metric(d: npt.NDArray[np.float64], digits: int) -> _Metric:
    if digits == GROUP:
        return _Metric(d.astype(np.float32), [d.astype(np.float32)], None)
    first, across, second = d[:digits, :digits], d[:digits, digits:], d[digits:, digits:]
    following = np.linalg.solve(second, across.T).T
    parts = [(first - following @ across.T).astype(np.float32), second.astype(np.float32)]
    return _Metric(d.astype(np.float32), parts, following.astype(np.float32))


class _Loops:
    """Of some rows, which begin as what `data` holds."""

    def __init__(self, w: Floats, lattice: Lattice, data: Bytes, values: Floats, moments: Moments) -> None:
        self._w, self._lattice, self._moments = w, lattice, moments
        self._magnitudes = lattice.magnitudes()
        self._digits = self._magnitudes.shape[1]
        i, j = np.triu_indices(self._digits)
        self._pairs = i, j
        self._squares = np.ascontiguousarray((self._magnitudes[:, i] * self._magnitudes[:, j]).T)
        self._turned = np.ascontiguousarray(self._magnitudes.T)
        groups = w.shape[1] // GROUP
        scales = lattice.scales_of(data)
        self._scales = np.repeat(scales, groups // scales.shape[1], axis=1)
        self._error = (w - values).reshape(len(w), groups, GROUP)
        self._data = data
        self._points = np.zeros((len(w), groups, GROUP // self._digits), np.int32)
        self._signs = np.zeros((len(w), groups), np.int32)
        #: By place in the order of rounding.
        self._groups = moments.order[::GROUP] // GROUP
        self._within = [np.argsort(own) for own in moments.order.reshape(-1, GROUP)]

    def joined(self) -> Bytes:
        """The rows, after `forward` or `read`."""
        rows = len(self._w)
        return self._lattice.joined(self._data, self._points.reshape(rows, -1), self._signs.reshape(rows, -1))

    def losses(self) -> Floats:
        """Without the damping."""
        m, errors = self._moments, self._ordered()
        total = np.zeros(len(errors), np.float32)
        for b, h in enumerate(m.h):
            own = errors[:, b * GROUP : (b + 1) * GROUP]
            total += _dot(native.product(errors, h) - np.float32(m.damping) * own, own)
        return total

    def _ordered(self) -> Floats:
        return np.ascontiguousarray(self._error.reshape(len(self._w), -1)[:, self._moments.order])

    def read(self, values: Floats) -> None:
        """Find points and signs of what `data` holds."""
        levels, book = self._lattice.values, grid(self._lattice.name)
        groups = values.reshape(self._error.shape)
        scale = np.where(self._scales > 0, self._scales, np.float32(1))[..., None]
        digits = np.searchsorted((levels[1:] + levels[:-1]) / 2, np.abs(groups) / scale).astype(np.int32)
        numbers = book.number(digits.reshape(-1, self._digits).T).reshape(self._points.shape)
        self._points[:] = np.maximum(book.index[numbers], 0)  # of a group without a scale any will do
        self._signs[:] = (np.signbit(groups) << np.arange(GROUP)).sum(axis=-1)

    def forward(self) -> None:
        m = self._moments
        errors = np.zeros_like(self._w)  # in the order of rounding
        for b, group in enumerate(self._groups):
            start, panel, at = b * GROUP, m.panel(b).astype(np.float64), self._within[b]
            inner = np.eye(GROUP) + panel[start:]
            d = (inner * m.pivots[start : start + GROUP]) @ inner.T
            factor = np.linalg.solve(inner.T, panel[:start].T).T.astype(np.float32)
            target = self._w[:, group * GROUP : (group + 1) * GROUP].copy()
            target += native.product(errors[:, :start], factor)[:, at]
            self._take(group, target, _metric(d[np.ix_(at, at)], self._digits), better_only=False)
            errors[:, start : start + GROUP] = self._error[:, group][:, np.argsort(at)]

    def sweep(self) -> None:
        m, errors = self._moments, self._ordered()
        for b, group in enumerate(self._groups):
            start, at = b * GROUP, self._within[b]
            own = m.h[b, start : start + GROUP].astype(np.float64)
            gradient = native.product(errors, m.h[b])
            value = self._w[:, group * GROUP : (group + 1) * GROUP] - self._error[:, group]
            target = value + native.product(gradient, m.block_inverse[b])[:, at]
            self._take(group, target, _metric(own[np.ix_(at, at)], self._digits), better_only=True)
            errors[:, start : start + GROUP] = self._error[:, group][:, np.argsort(at)]

    def _take(self, group: int, target: Floats, metric: _Metric, *, better_only: bool) -> None:
        """Move the group to the best points for its target [rows, 8]; if `better_only`, in rows where that is less
        than what it was."""
        w, scale = self._w[:, group * GROUP : (group + 1) * GROUP], self._scales[:, group]
        negative = self._sign(target, metric)
        sign = np.where(negative, np.float32(-1), np.float32(1))
        value, points, goal = np.empty_like(target), [], target
        for part, own in enumerate(metric.parts):
            span = slice(part * self._digits, (part + 1) * self._digits)
            found = self._nearest(goal[:, span], sign[:, span], scale, own)
            points.append(found)
            value[:, span] = scale[:, None] * sign[:, span] * self._magnitudes[found]
            if metric.next is not None and part == 0:
                goal = target.copy()
                goal[:, self._digits :] += native.product(target[:, span] - value[:, span], metric.next)
        bits = (negative << np.arange(GROUP)).sum(axis=1)
        taken = np.ones(len(w), np.bool_)
        if better_only:
            before, after = target - (w - self._error[:, group]), target - value
            taken = metric.of(after) < metric.of(before)
        self._error[taken, group] = (w - value)[taken]
        self._points[taken, group] = np.stack(points, axis=1)[taken]
        self._signs[taken, group] = bits[taken]

    def _sign(self, target: Floats, metric: _Metric) -> npt.NDArray[np.bool_]:
        """Which are negative [rows, 8]."""
        negative = target < 0
        if self._lattice.even_signs:
            odd = np.nonzero(negative.sum(axis=1) % 2 == 1)[0]
            least = np.argmin(np.square(target[odd]) * np.diagonal(metric.whole), axis=1)
            negative[odd, least] ^= True
        return negative

    def _nearest(self, target: Floats, sign: Floats, scale: Floats, metric: Floats) -> Ints:
        """The point of least (t - s q) D (t - s q)^T for each row, its signs given."""
        i, j = self._pairs
        twice = np.where(i == j, np.float32(1), np.float32(2)) * metric[i, j]
        quadratic = native.product(sign[:, i] * sign[:, j] * twice, self._squares)
        linear = native.product(native.product(target, metric) * sign, self._turned)
        quadratic *= scale[:, None]
        linear *= np.float32(2)
        quadratic -= linear
        return np.asarray(np.argmin(quadratic, axis=1), np.int32)
