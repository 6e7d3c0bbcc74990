"""Calibrated rounding on a GPU (`quants.accelerator`). Sums are float32, factors come of float64."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from loragraft.arrays import Floats
from loragraft.backends.triton.device import Device
from loragraft.errors import QuantizeError
from loragraft.quants.arranged import Arranged, Moments, Schedule
from loragraft.quants.grids import HALVES, Grid

_ROWS = 16
_ROWS_OF_X = 1 << 14


@dataclass(frozen=True, slots=True)
class _Held:
    """`Moments` on the device."""

    factor: Any
    pivots: Any
    h: Any
    block_factor: Any
    block_pivots: Any
    block_inverse: Any


class TritonRounding:
    """See the module's docstring. Calls from several threads take turns."""

    def __init__(self, device: Device) -> None:
        from loragraft.backends.triton.kernels import feedback

        self._device, self._kernel = device, feedback
        self._turn = threading.Lock()
        self._held: dict[int, _Held] = {}

    def second_moments(self, total: Floats, rows: Sequence[tuple[Floats, Floats | None]]) -> None:
        with self._turn, self._device.refusing():
            sums = self._device.tensor(total)
            for x, counts in rows:
                for first in range(0, len(x), _ROWS_OF_X):
                    part = self._device.tensor(x[first : first + _ROWS_OF_X])
                    weighed = part
                    if counts is not None:
                        weighed = part * self._device.tensor(counts[first : first + _ROWS_OF_X])[:, None]
                    sums += weighed.T @ part
            total[:] = ((sums + sums.T) / 2).cpu().numpy()

    def factor(self, panels: Sequence[Floats]) -> Floats:
        torch = self._device.torch
        size, sub = panels[-1].shape
        with self._turn, self._device.refusing():
            whole = torch.zeros(size, size, dtype=torch.float64, device=self._device.place)
            for b, panel in enumerate(panels):
                whole[: len(panel), b * sub : (b + 1) * sub] = self._device.tensor(panel)
            # U U^T with U upper triangular is L L^T read from behind; L's upper half is not looked at.
            lower, failed = torch.linalg.cholesky_ex(whole.flip(0, 1))
            if int(failed):
                raise QuantizeError(
                    "second moments", "are not positive definite", hint="calibrate on more text"
                )
            upper = lower.flip(0, 1).float()
            for b, panel in enumerate(panels):
                panel[:] = upper[: len(panel), b * sub : (b + 1) * sub].cpu().numpy()
            diagonal: Floats = upper.diagonal().cpu().numpy().copy()
        return diagonal

    def feedback(self, rows: Arranged, grid: Grid, moments: Moments, plan: Schedule) -> None:
        with self._turn, self._device.refusing():
            self._feedback(rows, grid, moments, plan)

    def _feedback(self, rows: Arranged, grid: Grid, moments: Moments, plan: Schedule) -> None:
        tensor, held = self._device.tensor, self._on_device(moments)
        w, levels, scales = (tensor(a) for a in (rows.w, rows.levels, rows.scales))
        none = self._device.empty(1)
        offsets = none if rows.offsets is None else tensor(rows.offsets)
        units = none if rows.units is None else tensor(rows.units)
        offset_units = none if rows.offset_units is None else tensor(rows.offset_units)
        numbers, shifts = grid.scales, grid.offsets or HALVES
        level_table = tensor(grid.levels)
        scale_table = none if numbers.table is None else tensor(numbers.table)
        offset_table = none if shifts.table is None else tensor(shifts.table)
        error = tensor(np.zeros_like(rows.w) if plan.forward else rows.w - _values(rows, grid))

        def loop(*, forward: bool, step: int) -> None:
            self._kernel.loop[(-(-len(rows.w) // _ROWS),)](
                w,
                error,
                levels,
                scales,
                offsets,
                units,
                offset_units,
                level_table,
                scale_table,
                offset_table,
                held.factor if forward else held.h,
                held.pivots if forward else held.block_pivots,
                held.block_factor,
                held.block_inverse,
                *rows.w.shape,
                float(grid.levels[0]),
                float(grid.levels[-1]),
                numbers.low,
                numbers.high,
                shifts.low,
                shifts.high,
                step,
                FORWARD=forward,
                AFFINE=rows.offsets is not None,
                HALF=numbers.table is None,
                HALF_OFFSETS=shifts.table is None,
                UNITS=rows.units is not None,
                OFFSET_UNITS=rows.offset_units is not None,
                UNIFORM=grid.uniform,
                LEVELS=len(grid.levels),
                SUB=grid.sub,
                ROWS=_ROWS,
                DEEP=64,
            )

        if plan.forward:
            loop(forward=True, step=plan.step)
        for step in plan.sweeps:
            loop(forward=False, step=step)
        rows.levels[:], rows.scales[:] = levels.cpu().numpy(), scales.cpu().numpy()
        if rows.offsets is not None:
            rows.offsets[:] = offsets.cpu().numpy()
        rows.losses[:] = self._losses(error, held, moments.damping).cpu().numpy()

    def _losses(self, error: Any, held: _Held, damping: float) -> Any:
        total = self._device.torch.zeros_like(error[:, 0])
        for panel, own in zip(held.h, error.split(held.h.shape[-1], dim=1), strict=True):
            total += ((error @ panel - damping * own) * own).sum(dim=1)
        return total

    def _on_device(self, moments: Moments) -> _Held:
        """Kept as long as `moments` are."""
        key = id(moments)
        if key not in self._held:
            tensor = self._device.tensor
            self._held[key] = _Held(
                tensor(moments.factor),
                tensor(moments.pivots),
                tensor(moments.h),
                tensor(moments.block_factor),
                tensor(moments.block_pivots),
                tensor(moments.block_inverse),
            )
            weakref.finalize(moments, self._held.pop, key, None)
        return self._held[key]


def _values(rows: Arranged, grid: Grid) -> Floats:
    """What the rows are rounded to."""
    scales = grid.scales.values(rows.scales, rows.units)
    values = scales[:, :, None] * rows.levels.reshape(*scales.shape, grid.sub).astype(np.float32)
    if grid.offsets is not None and rows.offsets is not None:
        offsets = grid.offsets.values(rows.offsets, rows.offset_units)
        values += (offsets if grid.offsets.table is None else -offsets)[:, :, None]
    return np.asarray(values.reshape(rows.w.shape), np.float32)
