"""One matrix of a checkpoint that is to be written: how it is made of a tensor of the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from loragraft.adapters.delta import Change, Delta
from loragraft.arrays import Bytes
from loragraft.errors import UnsupportedError
from loragraft.formats.source import TensorSource
from loragraft.formats.views import Computed, Reordered, ReorderedColumns, widened
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

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.rows_of), self.source.columns

    @property
    def module(self) -> str:
        return self.name.removesuffix(".weight")

    @property
    def is_nvfp4(self) -> bool:
        """Whether its codes and scales could be written as they are."""
        return self.source.type == NVFP4 and not self.deltas and self.columns is None

    def copied(self) -> Step:
        """Its codes and scales as they are."""
        return Step(self.name, self._rows(), NVFP4)

    def as_float(self, kind: QuantType) -> Step:
        deltas = tuple(self._own(delta) for delta in self.deltas)
        multiplier = None if self.scale == 1.0 else np.array([self.scale], np.float32)
        return Step(self.name, self._rows(), kind, deltas, multiplier=multiplier)

    def quantized(self) -> Step:
        """As NVFP4, under a scale that is 1 until it was measured. Rows are filled up with zeros to whole blocks."""
        step = replace(self.as_float(NVFP4), scales=np.ones(1, np.float32))
        return step if self.source.columns % BLOCK == 0 else replace(_filled(self), scales=step.scales)

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


def _filled(matrix: Matrix) -> Step:
    """The merged weights, and zeros behind each row up to a whole number of blocks."""
    merged = matrix.as_float(F32)
    rows, columns = matrix.shape
    zeros = -columns % BLOCK

    def compute(start: int, stop: int) -> Bytes:
        return np.pad(floats_of(Chunk(merged, start, stop)), ((0, 0), (0, zeros))).view(np.uint8)

    source = Computed(matrix.source.name, (rows, columns + zeros), F32, compute, [merged.source])
    return Step(matrix.name, source, NVFP4)
