"""What rounding with error feedback (`quants.feedback`) works on: second moments, and the rows of a tensor, in the
order in which columns are rounded. How far scales may move on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from loragraft.arrays import Floats, Ints
from loragraft.errors import QuantizeError
from loragraft.quants.grids import Grid, Levels, Parts

Order = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Moments:
    """The second moments of a layer's inputs, divided by the mean of their diagonal and damped, in the order in which
    the columns are rounded; all float32.

    `order`: int64 [cols], the columns; sub-blocks of `sub` stay together. Square matrices are kept as panels, the
    columns of a sub-block. `h`: H, [cols / sub, cols, sub]; `factor`, `pivots`: of H, panel after panel, the rows down
    to its own sub-block's, [cols (cols / sub + 1) / 2, sub] in all; `block_factor`, `block_pivots`, `block_inverse`: of
    the sub-blocks' own diagonal blocks of H.
    """

    sub: int
    damping: float
    mean: float
    order: Order
    factor: Floats
    pivots: Floats
    h: Floats
    block_factor: Floats
    block_pivots: Floats
    block_inverse: Floats

    def panel(self, b: int) -> Floats:
        """The rows of `factor` of sub-block `b`: [(b + 1) sub, sub]."""
        return self.factor[self.sub * b * (b + 1) // 2 :][: (b + 1) * self.sub]


@dataclass(frozen=True)
class Schedule:
    """How far the numbers of scales and offsets may move: in the pass with feedback, and in each sweep; 0: not at
    all. `forward`: whether there is that pass, or only sweeps over what is rounded already."""

    step: int
    sweeps: Sequence[int]
    forward: bool = True


def schedule(grid: Grid) -> Schedule:
    """What served best on real models: docs/rounding.md."""
    half = grid.scales.table is None
    return Schedule(32, (32, 16, 8)) if half else Schedule(1, (1, 1, 1))


@dataclass
class Arranged:
    """The rows of a tensor with their columns in the order of `Moments`: what the loops work on, in place.

    `w` float32 and `levels` int8 [rows, cols]; the others [rows, sub-blocks]. `losses` float32 [rows]: what the rows
    cost in the end, without the damping, in units of the moments' mean.
    """

    w: Floats
    levels: Levels
    scales: Ints
    offsets: Ints | None
    units: Floats | None
    offset_units: Floats | None
    losses: Floats

    def restored(self, moments: Moments, parts: Parts) -> Parts:
        """The columns in their own order again; units as in `parts`."""
        columns, blocks = np.argsort(moments.order), np.argsort(_blocks(moments))
        return Parts(
            np.take(self.levels, columns, axis=1),
            np.take(self.scales, blocks, axis=1),
            None if self.offsets is None else np.take(self.offsets, blocks, axis=1),
            parts.units,
            parts.offset_units,
        )


def arrange(w: Floats, grid: Grid, parts: Parts, moments: Moments) -> Arranged:
    """`w` float32 [rows, cols] and the `parts` that it was rounded to, for the loops. Raises QuantizeError if they do
    not fit the moments."""
    if w.shape[1] != len(moments.order) or grid.sub != moments.sub:
        raise QuantizeError(
            "second moments",
            "do not fit the weights",
            found=f"{len(moments.order)} columns in sub-blocks of {moments.sub}",
            expected=f"{w.shape[1]} in sub-blocks of {grid.sub}",
        )
    blocks = _blocks(moments)

    def picked(values: Any, index: Order) -> Any:
        return None if values is None else np.take(values, index, axis=1)

    return Arranged(
        np.asarray(picked(w, moments.order), np.float32),
        picked(parts.levels, moments.order),
        picked(parts.scales, blocks),
        picked(parts.offsets, blocks),
        picked(grid.spread(parts.units), blocks),
        picked(grid.spread(parts.offset_units), blocks),
        np.zeros(len(w), np.float32),
    )


def _blocks(moments: Moments) -> Order:
    return moments.order[:: moments.sub] // moments.sub
