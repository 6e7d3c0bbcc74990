"""One matrix of a checkpoint that is to be written: how it is made of a tensor of the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from loragraft.adapters.delta import Change
from loragraft.formats.source import Bytes, TensorSource
from loragraft.formats.views import Computed, Reordered
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

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.rows_of), self.source.columns

    @property
    def module(self) -> str:
        return self.name.removesuffix(".weight")

    @property
    def is_nvfp4(self) -> bool:
        """Whether its codes and scales could be written as they are."""
        return self.source.type == NVFP4 and not self.deltas

    def copied(self) -> Step:
        """Its codes and scales as they are."""
        return Step(self.name, self._rows(), NVFP4)

    def as_float(self, kind: QuantType) -> Step:
        deltas = tuple(delta.rows(self.expert, self.rows_of) for delta in self.deltas)
        multiplier = None if self.scale == 1.0 else np.array([self.scale], np.float32)
        return Step(self.name, self._rows(), kind, deltas, multiplier=multiplier)

    def quantized(self) -> Step:
        """As NVFP4, under a scale that is 1 until it was measured. Rows are filled up with zeros to whole blocks."""
        step = replace(self.as_float(NVFP4), scales=np.ones(1, np.float32))
        return step if self.source.columns % BLOCK == 0 else replace(_filled(self), scales=step.scales)

    def _rows(self) -> TensorSource:
        shape = self.source.shape
        rows = shape[-2] if len(shape) > 1 else 1
        if shape == self.shape and np.array_equal(self.rows_of, np.arange(rows)):
            return self.source
        return Reordered(self.source, self.rows_of + self.expert * rows, self.shape)


def _filled(matrix: Matrix) -> Step:
    """The merged weights, and zeros behind each row up to a whole number of blocks."""
    merged = matrix.as_float(F32)
    rows, columns = matrix.shape
    zeros = -columns % BLOCK

    def compute(start: int, stop: int) -> Bytes:
        return np.pad(floats_of(Chunk(merged, start, stop)), ((0, 0), (0, zeros))).view(np.uint8)

    source = Computed(matrix.source.name, (rows, columns + zeros), F32, compute, [merged.source])
    return Step(matrix.name, source, NVFP4)
