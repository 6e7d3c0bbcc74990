"""A matrix rounded with error feedback: the bytes of an ordinary file. Types with a grid go through the native core,
lattices through `quants.lattices`.

The scales begin as those that llama-quantize would choose with the moments' diagonal as its importance matrix. Rows
that come out no better than they were are left as llama-quantize has them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from loragraft import _native
from loragraft.arrays import Bytes, Floats
from loragraft.errors import QuantizeError
from loragraft.quants import lattices, native
from loragraft.quants.accelerator import at_hand
from loragraft.quants.arranged import Moments, Order, Schedule, arrange, schedule
from loragraft.quants.feedback import OutputFactor, joint_cost, round_again, round_in_turn, share_lost
from loragraft.quants.grids import GRIDS, HALVES, Grid, Parts
from loragraft.quants.lattices import GROUP, LATTICES
from loragraft.quants.nvfp4 import NVFP4
from loragraft.quants.types import QuantType
from loragraft.system.threads import in_threads


@dataclass(frozen=True, slots=True)
class Rounded:
    """`data`: uint8 [rows, row_bytes]. What rounding costs, tr((W - Q) H (W - Q)^T): `nearest` as llama-quantize
    rounds, `cost` as it was rounded. `kept`: rows that were left as llama-quantize has them."""

    data: Bytes
    nearest: float
    cost: float
    kept: int


def supports(kind: QuantType) -> bool:
    """Whether `kind` has a grid, or a lattice, to round on."""
    return kind.name in GRIDS or kind.name in LATTICES


def sub_of(kind: QuantType) -> int:
    """The columns that go together, as the moments for `kind` have them."""
    return GROUP if kind.name in LATTICES else GRIDS[kind.name].sub


def round_matrix(
    w: Floats,
    kind: QuantType,
    moments: Moments,
    importance: Floats,
    *,
    outputs: OutputFactor | None = None,
    change: Floats | None = None,
    scale: float = 0.0,
    plan: Schedule | None = None,
    threads: int = 1,
) -> Rounded:
    """`w` float32 [rows, cols] as `kind`, for inputs with the given second moments and mean squares `importance`
    float32 [cols]; with `outputs`, blocks of rows make up for those before them, and costs are tr(G E H E^T), unless
    that costs more than rounding to nearest; `change` is for `round_for_outputs`. `scale`: the per-tensor scale of
    NVFP4; 0 for none.

    Raises QuantizeError for arrays that do not fit together.
    """
    unit = _unit(kind, scale)
    factor = moments.mean * float(unit) ** 2
    if outputs is not None:
        data = round_for_outputs(
            w, kind, moments, importance, outputs, change=change, scale=scale, plan=plan, threads=threads
        )
        cost, usual = (
            joint_cost(
                np.asarray((w - native.dequantize(rows, kind) * unit) / unit, np.float32), moments, outputs
            )
            for rows in (data, nearest(w, kind, importance, scale))
        )
        if cost < usual:
            return Rounded(data, factor * usual, factor * cost, 0)
    data = nearest(w, kind, importance, scale)
    found, after, before = _rounder(kind, moments, unit, plan, threads).costed(w, data)
    better = after < before
    data[better] = found[better]
    costs = np.where(better, after, before)
    return Rounded(data, factor * _sum(before), factor * _sum(costs), int((~better).sum()))


def round_for_outputs(
    w: Floats,
    kind: QuantType,
    moments: Moments,
    importance: Floats,
    outputs: OutputFactor,
    *,
    change: Floats | None = None,
    scale: float = 0.0,
    plan: Schedule | None = None,
    threads: int = 1,
) -> Bytes:
    """The rows of `round_matrix` with `outputs`, whatever they cost. `change` float32 [rows, cols]: what an adapter has
    added to `w`, none of which is to be lost."""
    unit = _unit(kind, scale)
    rounder = _rounder(kind, moments, unit, plan, threads)
    data = np.empty((len(w), kind.row_bytes(w.shape[1])), np.uint8)

    def in_turn(target: Floats, rows: Order) -> Floats:
        data[rows] = rounder.anew(target, nearest(target, kind, importance, scale))
        return native.dequantize(data[rows], kind) * unit

    def once_more(target: Floats, rows: Order) -> Floats:
        data[rows] = rounder.again(target, data[rows])
        return native.dequantize(data[rows], kind) * unit

    rounded, target = round_in_turn(w, outputs, in_turn), w
    if change is not None:
        target = w + np.float32(share_lost(w - rounded, change, moments, outputs, threads)) * change
    round_again(target, rounded, outputs, once_more)
    return data


class _OnGrid:
    """Rounds rows of a type with a grid, whose scales count in `unit`s."""

    def __init__(
        self, kind: QuantType, moments: Moments, unit: np.float32, plan: Schedule | None, threads: int
    ) -> None:
        self._grid, self._moments, self._unit, self._threads = GRIDS[kind.name], moments, unit, threads
        self._plan = plan or schedule(self._grid)

    def costed(self, w: Floats, data: Bytes) -> tuple[Bytes, Floats, Floats]:
        """The rows, with the scales of `data` to begin with; what each costs so, and cost as `data`."""
        grid, parts, x = self._grid, self._grid.split(data), w / self._unit
        as_it_is = Schedule(0, (), forward=False)
        _, before = feedback(x, grid, parts, self._moments, as_it_is, threads=self._threads)
        rounded, after = feedback(x, grid, parts, self._moments, self._plan, threads=self._threads)
        return grid.join(rounded), after, before

    def anew(self, w: Floats, data: Bytes) -> Bytes:
        """The rows, with the scales of `data` to begin with."""
        return self._improved(w, data, self._plan)

    def again(self, w: Floats, data: Bytes) -> Bytes:
        """What sweeps alone make of `data`."""
        return self._improved(w, data, Schedule(self._plan.step, self._plan.sweeps[1:], forward=False))

    def _improved(self, w: Floats, data: Bytes, plan: Schedule) -> Bytes:
        grid, x = self._grid, w / self._unit
        found, _ = feedback(
            x, grid, grid.split(data), self._moments, plan, losses=False, threads=self._threads
        )
        return grid.join(found)


class _OnLattice:
    """The same for a type with a codebook."""

    def __init__(self, kind: QuantType, moments: Moments, threads: int) -> None:
        self._kind, self._moments, self._threads = kind, moments, threads

    def costed(self, w: Floats, data: Bytes) -> tuple[Bytes, Floats, Floats]:
        values = native.dequantize(data, self._kind)
        return lattices.rounded(w, self._kind.name, data, values, self._moments, threads=self._threads)

    def anew(self, w: Floats, data: Bytes) -> Bytes:
        return self.costed(w, data)[0]

    def again(self, w: Floats, data: Bytes) -> Bytes:
        values = native.dequantize(data, self._kind)
        return lattices.swept(w, self._kind.name, data, values, self._moments, threads=self._threads)


def _rounder(
    kind: QuantType, moments: Moments, unit: np.float32, plan: Schedule | None, threads: int
) -> _OnGrid | _OnLattice:
    if kind.name in LATTICES:
        return _OnLattice(kind, moments, threads)
    return _OnGrid(kind, moments, unit, plan, threads)


def nearest(w: Floats, kind: QuantType, importance: Floats, scale: float = 0.0) -> Bytes:
    """As llama-quantize rounds with an importance matrix; NVFP4 with its per-tensor `scale`, if not 0."""
    if kind == NVFP4 and scale:
        return native.quantize_nvfp4(w, scale, importance)
    return native.quantize(w, kind, importance)


def _unit(kind: QuantType, scale: float) -> np.float32:
    return np.float32(scale if kind == NVFP4 and scale else 1)


def _sum(losses: Floats) -> float:
    return float(losses.sum(dtype=np.float64))


def feedback(
    w: Floats,
    grid: Grid,
    parts: Parts,
    moments: Moments,
    plan: Schedule | None = None,
    *,
    losses: bool = True,
    threads: int = 1,
    isa: str = "",
) -> tuple[Parts, Floats]:
    """See `quants.feedback.feedback`, whose numbers these are, for any number of threads, unless an accelerator is at
    hand. Without `losses` rows are said to cost nothing, in less time. `isa` names another instruction set's kernels
    than the machine's best."""
    rows = arrange(w, grid, parts, moments)
    plan = plan or schedule(grid)
    scales, offsets = grid.scales, grid.offsets or HALVES
    for numbers, allowed in ((rows.scales, scales), (rows.offsets, offsets)):
        if (
            numbers is not None
            and numbers.size
            and not (allowed.low <= numbers.min() and numbers.max() <= allowed.high)
        ):
            raise QuantizeError("scales", "are outside of the type's range", found=int(numbers.max()))
    accelerator = at_hand()
    if accelerator is not None:
        accelerator.feedback(rows, grid, moments, plan)
        return rows.restored(moments, parts), rows.losses
    at_once = _native.feedback_rows(isa)

    def run(first: int) -> None:
        _native.feedback(
            rows.w,
            rows.units,
            rows.offset_units,
            rows.scales,
            rows.offsets,
            rows.levels,
            grid.levels,
            grid.uniform,
            scales.table,
            (scales.low, scales.high),
            offsets.table,
            (offsets.low, offsets.high),
            moments.factor,
            moments.pivots,
            moments.h,
            moments.block_factor,
            moments.block_pivots,
            moments.block_inverse,
            plan.forward,
            plan.step,
            list(plan.sweeps),
            moments.damping,
            rows.losses if losses else None,
            first,
            min(first + at_once, len(w)),
            isa,
        )

    if threads == 1:
        for first in range(0, len(w), at_once):
            run(first)
    else:
        in_threads(run, range(0, len(w), at_once), threads)
    return rows.restored(moments, parts), rows.losses
