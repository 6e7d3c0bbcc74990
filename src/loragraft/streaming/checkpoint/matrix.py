"""One matrix of a checkpoint that is to be written: how it is made of a tensor of the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from loragraft.adapters.delta import Change, Delta
from loragraft.arrays import Bytes, Floats
from loragraft.errors import UnsupportedError
from loragraft.formats.source import TensorSource
from loragraft.formats.views import Computed, Reordered, ReorderedColumns, Transposed, widened
from loragraft.quants.nvfp4 import BLOCK, NVFP4
from loragraft.quants.types import F32, QuantType
from loragraft.streaming.rows import floats_of
from loragraft.streaming.steps import Chunk, Step

GROUP = 16
"""Weights per block scale."""


@dataclass(frozen=True)
class Matrix:
    """Rows `rows_of` of the matrix `expert` of `source`, in this order, are the checkpoint's tensor `name`.

    What `source` holds is to be multiplied by `scale` before the deltas are added. `input_scale`: of the activations.
    """

    name: str
    source: TensorSource
    rows_of: npt.NDArray[np.intp]
    expert: int
    scale: float
    input_scale: float | None
    deltas: Sequence[Change] = ()
    columns: npt.NDArray[np.intp] | None = None
    """Column i is the source's column columns[i]; None: as they are."""
    divisor: Floats | None = None
    """What GGUF's rows are multiplied by and the checkpoint's are not: one number for each of `rows_of`."""
    stack: int | None = None
    """It is a stack of so many matrices, which have as many rows each; None: a matrix."""
    transposed: bool = False
    """The checkpoint has each matrix as [columns, rows]: only in floating point."""

    @property
    def shape(self) -> tuple[int, int]:
        """Of all rows, as the source has them."""
        return len(self.rows_of), self.source.columns

    @property
    def float_shape(self) -> tuple[int, ...]:
        """Of the checkpoint's tensor in floating point."""
        *stack, rows, columns = self.shaped(self.source.columns)
        return (*stack, columns, rows) if self.transposed else (*stack, rows, columns)

    def shaped(self, columns: int) -> tuple[int, ...]:
        """The shape of a tensor of the checkpoint that has so many columns for this one's."""
        rows = self.shape[0]
        return (rows, columns) if self.stack is None else (self.stack, rows // self.stack, columns)

    @property
    def module(self) -> str:
        return self.name.removesuffix(".weight")

    @property
    def is_nvfp4(self) -> bool:
        """Whether its codes and scales could be written as they are."""
        return self.holds(NVFP4)

    def holds(self, kind: QuantType) -> bool:
        """Whether its bytes are the checkpoint's codes of this type."""
        changed = self.deltas or self.columns is not None or self.divisor is not None
        return self.source.type == kind and not changed

    def copied(self) -> Step:
        """Its codes and scales as they are."""
        return Step(self.name, self._rows(), self.source.type)

    def as_float(self, kind: QuantType) -> Step:
        """Merged, in floating point."""
        deltas = tuple(self._own(delta) for delta in self.deltas)
        multiplier = None if self.scale == 1.0 else np.array([self.scale], np.float32)
        step = Step(self.name, self._rows(), kind, deltas, multiplier=multiplier)
        if self.divisor is not None:
            step = Step(self.name, _computed(replace(step, type=F32), self._divided), kind)
        if self.transposed:
            whole = _computed(replace(step, type=F32))
            whole.shape = self.shaped(self.source.columns)
            step = Step(self.name, Transposed(whole), kind)
        return step

    def quantized(self) -> Step:
        """As NVFP4, under a scale that is 1 until it was measured. Rows are filled up with zeros to whole blocks."""
        step = self.as_float(NVFP4)
        if zeros := -self.source.columns % BLOCK:
            filled = _computed(
                self.as_float(F32), lambda values, start: np.pad(values, ((0, 0), (0, zeros))), zeros
            )
            step = Step(self.name, filled, NVFP4)
        return replace(step, scales=np.ones(1, np.float32))

    def _divided(self, values: Floats, start: int) -> Floats:
        assert self.divisor is not None
        return values / self.divisor[start : start + len(values), None]

    def _own(self, delta: Change) -> Change:
        delta = delta.rows(self.expert, self.rows_of)
        if self.columns is None:
            return delta
        if not isinstance(delta, Delta):
            raise UnsupportedError(
                self.name, "is turned as a whole by an adapter, and GGUF has its columns in another order"
            )
        return replace(delta, a=np.ascontiguousarray(delta.a[:, self.columns]))

    def _rows(self) -> TensorSource:
        shape = self.source.shape
        rows = shape[-2] if len(shape) > 1 else 1
        source = self.source
        if shape != self.shape or not np.array_equal(self.rows_of, np.arange(rows)):
            source = Reordered(self.source, self.rows_of + self.expert * rows, self.shape)
        return source if self.columns is None else ReorderedColumns(widened(source), self.columns)


def _as_they_are(values: Floats, start: int) -> Floats:
    return values


def _computed(
    merged: Step, change: Callable[[Floats, int], Floats] = _as_they_are, more: int = 0
) -> TensorSource:
    """F32: what the step `merged` makes, and `change` of each range of rows and its first; it adds `more` columns."""
    rows, columns = merged.source.n_rows, merged.source.columns + more

    def compute(start: int, stop: int) -> Bytes:
        values = change(floats_of(Chunk(merged, start, stop)), start)
        return np.ascontiguousarray(values, np.float32).view(np.uint8)

    return Computed(merged.source.name, (rows, columns), F32, compute, [merged.source])
