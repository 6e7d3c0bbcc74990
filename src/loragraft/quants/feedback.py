"""Rounding with error feedback: what rounding one weight does to a layer's output is made up for by the weights that
are rounded after it.

For y = W x and inputs with second moments H = sum x x^T, rounding W to Q costs tr((W - Q) H (W - Q)^T), row by row. The
columns are rounded one after another, each after the errors of those before it were added, weighed by a factor of H;
that makes the cost small greedily (GPTQ, Frantar et al., arXiv:2210.17323; in the form of LDLQ, Chee et al.,
arXiv:2307.13304: with H = (I + F) P (I + F)^T, F strictly upper triangular and P diagonal, the cost is the sum over
columns k of P_k (w_k + sum over j < k of (w_j - q_j) F_jk - q_k)^2). Two things are added to it:

- The scale (and offset) of a sub-block is chosen on the way: beside the one that stands, its neighbours are tried, each
  with the whole sub-block rounded anew, and the one of least cost stays.
- Sweeps follow. Each visits every sub-block and, while all others stay as they are, rounds it anew to what is then
  best for it, in the same way, with the factor of its own block of H; what does not lower the cost is not taken.

The outputs of a layer do not count alike either. With second moments G of the gradients g of the loss at y, what
rounding costs is tr(G (W - Q) H (W - Q)^T) (the Kronecker factors of the Fisher information; Martens and Grosse,
arXiv:1503.05671). With G = V P V^T, V unit upper triangular by blocks of rows, the rows of a block are rounded like
those of a matrix of their own to w_r + sum over the earlier s of V_sr (w_s - q_s): `OutputFactor`, `round_in_turn`.
Then each block is visited again, as all others have become: sweeps towards w_b + G_bb^-1 G_bs (w_s - q_s), s being all
rows of the others (`round_again`).

Errors of all layers add up where they point the same way. With an adapter they do: each matrix goes back to the base a
little. So for that second visit a matrix whose change is known is moved on by the part of it that is lost
(`share_lost`).

This is the definition. The native core (native/quant/feedback.cpp) does the same operations on every row in the same
order, all in float32, and gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from loragraft.arrays import Doubles, Floats, Ints
from loragraft.errors import QuantizeError
from loragraft.quants import native
from loragraft.quants.accelerator import at_hand
from loragraft.quants.arith import F
from loragraft.quants.arranged import Arranged, Moments, Order, Schedule, arrange, schedule
from loragraft.quants.grids import Grid, Parts
from loragraft.system.threads import in_threads

DAMPING = 0.01
"""Added to the diagonal of H, in units of its mean: what calibration did not show is taken to come a little."""
_MAGIC = F(12582912.0)
_ROWS_AT_ONCE = 512
_COLUMNS_AT_ONCE = 512


def prepare(h: Floats | Doubles, sub: int, damping: float = DAMPING) -> Moments:
    """Second moments h [cols, cols], symmetric, for a grid with sub-blocks of `sub` columns.

    The sub-blocks come in the order of their share of H's diagonal, the largest first, and so do the columns of each:
    what weighs most is rounded while most is left to make up for it. Raises QuantizeError for moments that are not
    finite, or zero.
    """
    return arranged(h, sub, damping).factored()


@dataclass(frozen=True)
class ArrangedMoments:
    """Second moments in the order of `Moments`, which `factored` makes of them: h is not needed any more."""

    sub: int
    damping: float
    mean: float
    order: Order
    h: Floats

    def factored(self, threads: int = 1) -> Moments:
        """As `prepare`."""
        cols, sub = len(self.order), self.sub
        subs = range(cols // sub)
        own = np.stack([self.h[b, b * sub : (b + 1) * sub] for b in subs]).astype(np.float64)
        block_factor, block_pivots = _factor(own)
        factor = np.empty((cols * (len(subs) + 1) // 2, sub), np.float32)
        panels, start = [], 0
        for b in subs:
            panels.append(factor[start : start + (b + 1) * sub])
            panels[b][:] = self.h[b, : (b + 1) * sub]
            start += (b + 1) * sub
        roots = _factor_panels(panels, threads)
        for b, panel in enumerate(panels):
            panel /= roots[b * sub : (b + 1) * sub]
            panel[-sub:][np.diag_indices(sub)] = 0
        return Moments(
            sub,
            self.damping,
            self.mean,
            self.order,
            factor,
            roots * roots,
            self.h,
            np.ascontiguousarray(block_factor, np.float32),
            block_pivots.reshape(-1).astype(np.float32),
            np.ascontiguousarray(np.linalg.inv(own), np.float32),
        )


def arranged(h: Floats | Doubles, sub: int, damping: float = DAMPING) -> ArrangedMoments:
    """The first half of `prepare`."""
    cols = len(h)
    diagonal = np.diagonal(h).astype(np.float64)
    mean = float(diagonal.mean())
    if not (np.isfinite(mean) and mean > 0):
        raise QuantizeError("second moments", "are not finite and positive", found=mean)
    by_block = diagonal.reshape(-1, sub)
    blocks = np.argsort(-by_block.sum(axis=1), kind="stable")
    within = np.argsort(-by_block, axis=1, kind="stable")
    order = (blocks[:, None] * sub + within[blocks]).reshape(-1)
    panels = np.empty((cols // sub, cols, sub), np.float32)
    for b, panel in enumerate(panels):
        columns = order[b * sub : (b + 1) * sub]
        panel[:] = h[columns].T[order] / F(mean)  # rows, which lie together, for columns: h is symmetric
        panel[np.arange(b * sub, (b + 1) * sub), np.arange(sub)] += F(damping)
    return ArrangedMoments(sub, damping, mean, order, panels)


def _factor_panels(panels: Sequence[Floats], threads: int, block: int = 128) -> Floats:
    """Make of the upper half of a symmetric matrix U, upper triangular, with U U^T = it. `panels`: of `sub` columns
    each, float32 [(b + 1) sub, sub]. Returns U's diagonal.

    Block by block of columns, the last first, each after what the panels right of it take away: no second matrix is
    made.
    """
    if (accelerator := at_hand()) is not None:
        return accelerator.factor(panels)
    sub = panels[0].shape[1]
    at_once = max(1, block // sub)
    diagonals = []
    for last in range(len(panels), 0, -at_once):
        here = panels[max(0, last - at_once) : last]
        first, stop = (last - len(here)) * sub, last * sub
        columns = np.zeros((stop, stop - first), np.float32)
        for number, panel in enumerate(here):
            columns[: len(panel), number * sub : (number + 1) * sub] = panel

        def take_away(top: int, columns: Floats = columns, first: int = first, last: int = last) -> None:
            rows = columns[top : top + _ROWS_AT_ONCE]
            for panel in panels[last:]:
                left = panel[top : top + len(rows)]
                native.product(left, -panel[first : first + columns.shape[1]].T, rows, add=True)

        in_threads(take_away, range(0, stop, _ROWS_AT_ONCE), threads)
        diagonals.append(_factor_columns(columns))
        for number, panel in enumerate(here):
            panel[:] = columns[: len(panel), number * sub : (number + 1) * sub]
    return np.concatenate(diagonals[::-1]).astype(np.float32)


def _factor_in_place(a: Floats, block: int = 128) -> Floats:
    """Make of `a` float32 [n, n], symmetric, U upper triangular with U U^T = a, as `_factor_panels` does of panels.
    Returns its diagonal [n]."""
    for stop in range(len(a), 0, -block):
        first = max(0, stop - block)
        if stop < len(a):
            a[:stop, first:stop] -= native.product(a[:stop, stop:], a[first:stop, stop:].T)
        _factor_columns(a[:stop, first:stop])
        a[stop:, first:stop] = 0
    return np.diagonal(a).copy()


def _factor_columns(columns: Floats) -> Floats:
    """Make of a block of the matrix's columns, down to its diagonal's end, less what those right of it take away,
    U's. Returns the block's diagonal."""
    first = len(columns) - columns.shape[1]
    own = _cholesky(columns[first:].astype(np.float64))
    columns[first:] = own
    columns[:first] = native.product(columns[:first], np.linalg.inv(own).T.astype(np.float32))
    return np.diagonal(own).astype(np.float32)


def _cholesky(h: Doubles) -> Doubles:
    """U [..., n, n], upper triangular, with U U^T = h, which is symmetric: only its upper half is looked at."""
    try:
        return np.asarray(np.linalg.cholesky(h[..., ::-1, ::-1])[..., ::-1, ::-1])
    except np.linalg.LinAlgError:
        raise QuantizeError(
            "second moments", "are not positive definite", hint="calibrate on more text"
        ) from None


def _factor(h: Doubles) -> tuple[Doubles, Doubles]:
    """F [..., n, n], strictly upper triangular, and P [..., n] with (I + F) diag(P) (I + F)^T = h."""
    upper = _cholesky(h)
    roots = np.diagonal(upper, axis1=-2, axis2=-1)
    factor = upper / roots[..., None, :]
    index = np.arange(h.shape[-1])
    factor[..., index, index] = 0
    return factor, roots * roots


#: Rows that are rounded without regard to one another.
TILE = 64
OUTPUT_DAMPING = 0.3
"""Added to the diagonal of G, in units of its mean."""


@dataclass(frozen=True)
class OutputFactor:
    """`order` int64 [rows]: the rows as they are rounded; `starts`: where the blocks of `TILE` or fewer begin in it,
    and its end; `factor` float32 [rows, rows]: V of the module's docstring in that order, the blocks above its
    diagonal; `g` float32 [rows, rows]: G, divided by the mean of its diagonal and damped, in the rows' own order."""

    order: Order
    starts: Sequence[int]
    factor: Floats
    g: Floats


def prepare_outputs(g: Floats | Doubles, damping: float = OUTPUT_DAMPING) -> OutputFactor | None:
    """Second moments of the outputs' gradients g [rows, rows], symmetric. None if they say nothing (zeros).

    Neighbouring rows, which belong to one head and go together, come into different blocks, for within a block nothing
    is made up for. Raises QuantizeError for moments that are not finite.
    """
    rows = len(g)
    mean = float(np.diagonal(g).astype(np.float64).mean())
    if not np.isfinite(mean):
        raise QuantizeError("gradients", "are not finite")
    if mean <= 0:
        return None
    tiles = -(-rows // TILE)
    order = np.concatenate([np.arange(first, rows, tiles) for first in range(tiles)])
    starts = np.cumsum([0, *(len(range(first, rows, tiles)) for first in range(tiles))])
    damped = np.asarray(g / F(mean), np.float32)
    damped[np.arange(rows), np.arange(rows)] += F(damping)
    factor = damped.take(order, 0).take(order, 1)
    factor /= _factor_in_place(factor)
    for first, stop in pairwise(starts.tolist()):
        own = np.linalg.inv(factor[first:stop, first:stop])
        factor[:first, first:stop] = native.product(factor[:first, first:stop], own)
        factor[first:stop, first:stop] = 0
    return OutputFactor(order, starts.tolist(), factor, damped)


def joint_cost(error: Floats, moments: Moments, outputs: OutputFactor) -> float:
    """tr(G E H E^T) for E = W - Q float32 [rows, cols], both moments damped, in units of their means."""
    ordered = np.take(error, moments.order, axis=1)
    weighed, sub = native.product(outputs.g, ordered), moments.sub
    return sum(
        float(np.vdot(weighed[:, b * sub : (b + 1) * sub], native.product(ordered, panel)))
        for b, panel in enumerate(moments.h)
    )


def share_lost(
    error: Floats, change: Floats, moments: Moments, outputs: OutputFactor, threads: int = 1
) -> float:
    """The part of `change`, what an adapter does to a matrix, that rounding has taken back: tr(G E H D^T) over
    tr(G D H D^T), E = W - Q being the `error` and D the change, both float32 [rows, cols]. 0 if D does nothing."""
    ordered, changed = (np.take(x, moments.order, axis=1) for x in (error, change))
    weighed, sub = native.product(outputs.g, changed), moments.sub
    at_once = max(1, _COLUMNS_AT_ONCE // sub)

    def of_panels(first: int) -> list[tuple[float, float]]:
        panels = moments.h[first : first + at_once]
        done = native.product(weighed, panels.transpose(1, 0, 2).reshape(len(moments.order), -1))
        found = []
        for number in range(len(panels)):
            own = done[:, number * sub : (number + 1) * sub]
            columns = slice((first + number) * sub, (first + number + 1) * sub)
            found.append((float(np.vdot(ordered[:, columns], own)), float(np.vdot(changed[:, columns], own))))
        return found

    lost = whole = 0.0
    for found in in_threads(of_panels, range(0, len(moments.h), at_once), threads):
        for a, b in found:
            lost, whole = lost + a, whole + b
    return lost / whole if whole > 0 else 0.0


def round_in_turn(w: Floats, outputs: OutputFactor, round_rows: Callable[[Floats, Order], Floats]) -> Floats:
    """Round the rows of `w` float32 [rows, cols] block by block. `round_rows(targets, rows)` rounds the rows of those
    numbers to targets that make up for the blocks before, and returns what they have become; so does this."""
    errors, result = np.zeros_like(w), np.empty_like(w)
    for first, stop in pairwise(outputs.starts):
        rows = outputs.order[first:stop]
        target = native.product(outputs.factor[:first, first:stop].T, errors[:first], w[rows], add=True)
        result[rows] = round_rows(target, rows)
        errors[first:stop] = w[rows] - result[rows]
    return result


def round_again(
    w: Floats, rounded: Floats, outputs: OutputFactor, round_rows: Callable[[Floats, Order], Floats]
) -> Floats:
    """Visit the blocks of rows that `round_in_turn` has rounded once more, each with targets that make up for what all
    the others have become."""
    errors, result = w - rounded, rounded.copy()
    for first, stop in pairwise(outputs.starts):
        rows = outputs.order[first:stop]
        others = outputs.g[rows]
        own = others[:, rows].astype(np.float64)
        others[:, rows] = 0
        target = w[rows] + np.linalg.solve(own, native.product(others, errors))
        result[rows] = round_rows(target.astype(np.float32), rows)
        errors[rows] = w[rows] - result[rows]
    return result


def feedback(
    w: Floats, grid: Grid, parts: Parts, moments: Moments, plan: Schedule | None = None
) -> tuple[Parts, Floats]:
    """`w` float32 [rows, cols] rounded on `grid`, beginning with the scales of `parts`; units stay.

    Returns the parts and what each row costs, float32 [rows], in units of `moments.mean`.
    """
    rows = arrange(w, grid, parts, moments)
    plan = plan or schedule(grid)
    with np.errstate(all="ignore"):
        loops = _Loops(rows, grid, moments)
        if plan.forward:
            loops.forward(plan.step)
        else:
            loops.read()
        for step in plan.sweeps:
            loops.sweep(step)
        rows.losses[:] = loops.losses()
    return rows.restored(moments, parts), rows.losses


class _Best:
    """What a sub-block's rows were rounded to: level and value [n, rows], scale, offset and loss [rows]."""

    def __init__(self, level: Floats, value: Floats, scale: Ints, offset: Ints | None, loss: Floats) -> None:
        self.level, self.value, self.scale, self.offset, self.loss = level, value, scale, offset, loss


class _Loops:
    """Works on all rows at once; arrays are [cols, rows]."""

    def __init__(self, rows: Arranged, grid: Grid, moments: Moments) -> None:
        self.rows, self.grid, self.moments = rows, grid, moments
        self.w = np.ascontiguousarray(rows.w.T)
        self.error = np.zeros_like(self.w)
        self.subs = rows.scales.shape[1]

    def span(self, b: int) -> slice:
        return slice(b * self.moments.sub, (b + 1) * self.moments.sub)

    def forward(self, step: int) -> None:
        for b in range(self.subs):
            at, panel = self.span(b), self.moments.panel(b)
            target = _add_products(self.w[at].copy(), self.error, panel[: at.start])
            nothing = np.zeros_like(target)
            best = _Best(nothing, nothing, *self.numbers(b), np.full_like(target[0], np.inf))
            self.search(target, self.w[at], panel[at], self.moments.pivots[at], b, step, best)
            self.keep(b, best)

    def read(self) -> None:
        for b in range(self.subs):
            scale, offset = self.scale_and_offset(b, *self.numbers(b))
            self.error[self.span(b)] = self.w[self.span(b)] - (scale * self.levels(b) + offset)

    def sweep(self, step: int) -> None:
        m = self.moments
        for b in range(self.subs):
            at = self.span(b)
            gradient = _add_products(np.zeros_like(self.w[at]), self.error, m.h[b])
            value = self.w[at] - self.error[at]
            target = _add_products(value.copy(), gradient, m.block_inverse[b])
            factor, pivots = m.block_factor[b], m.block_pivots[at]
            loss = _loss(target, factor, pivots, value)
            best = _Best(self.levels(b), value, *self.numbers(b), loss)
            self.search(target, target, factor, pivots, b, step, best)
            self.keep(b, best)

    def losses(self) -> Floats:
        total: Floats = np.zeros_like(self.w[0])
        for b in range(self.subs):
            gradient = _add_products(np.zeros_like(self.w[self.span(b)]), self.error, self.moments.h[b])
            for g, e in zip(gradient, self.error[self.span(b)], strict=True):
                total += (g - F(self.moments.damping) * e) * e
        return total

    def search(
        self, target: Floats, w: Floats, factor: Floats, pivots: Floats, b: int, step: int, best: _Best
    ) -> None:
        """Round to the target with the scale and offset that stand, then with their neighbours; errors count from
        `w`."""
        scale, offset = best.scale, best.offset
        self.attempt(target, w, factor, pivots, b, scale, offset, best)
        for move in (-step, step) if step else ():
            moved = np.clip(scale + np.int32(move), self.grid.scales.low, self.grid.scales.high)
            self.attempt(target, w, factor, pivots, b, moved, offset, best)
        if offset is None or self.grid.offsets is None:
            return
        scale = best.scale
        for move in (-step, step) if step else ():
            moved = np.clip(offset + np.int32(move), self.grid.offsets.low, self.grid.offsets.high)
            self.attempt(target, w, factor, pivots, b, scale, moved, best)

    def attempt(
        self,
        target: Floats,
        w: Floats,
        factor: Floats,
        pivots: Floats,
        b: int,
        scale: Ints,
        offset: Ints | None,
        best: _Best,
    ) -> None:
        s, m = self.scale_and_offset(b, scale, offset)
        inverse = np.where(s != 0, F(1) / s, F(0))
        at, level, value = target.copy(), np.empty_like(target), np.empty_like(target)
        loss = np.zeros_like(s)
        for j in range(len(target)):
            level[j] = self.nearest((at[j] - m) * inverse)
            value[j] = s * level[j] + m
            rest, error = at[j] - value[j], w[j] - value[j]
            loss += pivots[j] * rest * rest
            at[j + 1 :] += error * factor[j, j + 1 :, None]
        better = loss < best.loss
        best.level = np.where(better, level, best.level)
        best.value = np.where(better, value, best.value)
        best.scale = np.where(better, scale, best.scale)
        if offset is not None and best.offset is not None:
            best.offset = np.where(better, offset, best.offset)
        best.loss = np.where(better, loss, best.loss)

    def nearest(self, v: Floats) -> Floats:
        """The nearest level; of two as near, the even one where levels are whole numbers, else the upper one."""
        levels = self.grid.levels
        v = np.where(v > levels[0], v, levels[0])
        v = np.where(v < levels[-1], v, levels[-1])
        if self.grid.uniform:
            return np.asarray((v + _MAGIC) - _MAGIC, np.float32)
        middles = (levels[1:] + levels[:-1]) / F(2)
        return levels[np.searchsorted(middles, v, side="right")]

    def numbers(self, b: int) -> tuple[Ints, Ints | None]:
        return self.rows.scales[:, b], None if self.rows.offsets is None else self.rows.offsets[:, b]

    def scale_and_offset(self, b: int, scale: Ints, offset: Ints | None) -> tuple[Floats, Floats]:
        units, offset_units = self.rows.units, self.rows.offset_units
        s = self.grid.scales.values(scale, None if units is None else units[:, b])
        if offset is None or self.grid.offsets is None:
            return s, np.zeros_like(s)
        m = self.grid.offsets.values(offset, None if offset_units is None else offset_units[:, b])
        return s, m if self.grid.offsets.table is None else -m

    def levels(self, b: int) -> Floats:
        return self.rows.levels[:, self.span(b)].T.astype(np.float32)

    def keep(self, b: int, best: _Best) -> None:
        self.error[self.span(b)] = self.w[self.span(b)] - best.value
        self.rows.levels[:, self.span(b)] = best.level.T.astype(np.int8)
        self.rows.scales[:, b] = best.scale
        if self.rows.offsets is not None and best.offset is not None:
            self.rows.offsets[:, b] = best.offset


def _add_products(sums: Floats, error: Floats, panel: Floats) -> Floats:
    """sums [n, rows] += panel [count, n]^T error [count, rows], one row of the panel after another."""
    for weights, values in zip(panel, error, strict=False):
        sums += weights[:, None] * values
    return sums


def _loss(target: Floats, factor: Floats, pivots: Floats, value: Floats) -> Floats:
    at: Floats = target.copy()
    loss: Floats = np.zeros_like(target[0])
    for j in range(len(target)):
        rest, error = at[j] - value[j], target[j] - value[j]
        loss += pivots[j] * rest * rest
        at[j + 1 :] += error * factor[j, j + 1 :, None]
    return loss
