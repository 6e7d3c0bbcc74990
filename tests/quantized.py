"""Tensors in any type, made from floats in memory."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from loragraft.arrays import Floats
from loragraft.formats.source import TensorSource
from loragraft.quants import native, reference
from loragraft.quants.types import BY_NAME, QuantType


class Quantized(TensorSource):
    """`values` as `kind`; `released` counts the rows that were given back."""

    def __init__(self, name: str, values: Floats, kind: QuantType) -> None:
        self.name, self.shape, self.type = name, values.shape, kind
        self.released = 0
        rows = np.ascontiguousarray(values, np.float32).reshape(-1, values.shape[-1])
        self._rows = native.quantize(rows, kind, np.ones(values.shape[-1], np.float32))

    @classmethod
    def of(cls, source: TensorSource, kind: QuantType) -> Quantized:
        """A float tensor of a model in another type."""
        floats = reference.dequantize(source.rows(0, source.n_rows), source.type)
        return cls(source.name, floats.reshape(source.shape), kind)

    def rows(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        return self._rows[start:stop]

    def release(self, start: int, stop: int) -> None:
        self.released += stop - start


def quantized(arrays: dict[str, Floats], kind: str) -> dict[str, TensorSource | Floats]:
    """`arrays` with every matrix that fits in blocks of the type `kind`."""
    chosen = BY_NAME[kind]
    return {
        name: Quantized(name, array, chosen)
        if name.endswith(".weight") and array.ndim > 1 and array.shape[-1] % chosen.block == 0
        else array
        for name, array in arrays.items()
    }
