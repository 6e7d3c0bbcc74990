"""One matrix of a checkpoint that is being exported: its rows, in Hugging Face's order, as floats or as codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from loragraft.adapters.delta import Delta, add_deltas
from loragraft.adapters.lora import Floats
from loragraft.errors import QuantizeError
from loragraft.formats.source import Bytes, TensorSource
from loragraft.formats.views import float_rows
from loragraft.quants import native, reference
from loragraft.quants.nvfp4 import BLOCK, tensor_scale, unpack_modelopt
from loragraft.quants.types import QuantType

GROUP = 16
"""Weights per block scale."""
_CHUNK_WEIGHTS = 1 << 20


@dataclass(frozen=True)
class Matrix:
    """`rows_of[i]` is the row of `source` that is row i of the checkpoint's tensor `name`; `expert` selects of the
    deltas. What `source` holds is to be multiplied by `scale`."""

    name: str
    source: TensorSource
    rows_of: npt.NDArray[np.intp]
    expert: int
    scale: float
    input_scale: float | None
    deltas: Sequence[Delta] = ()

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.rows_of), self.source.columns

    @property
    def module(self) -> str:
        return self.name.removesuffix(".weight")

    @property
    def is_carried_over(self) -> bool:
        """Whether its codes and scales can be exported as they are."""
        return self.source.type.name == "NVFP4" and not self.deltas

    def chunks(self) -> list[tuple[int, int]]:
        """Row ranges of a bounded number of weights that cover the matrix."""
        rows, columns = self.shape
        step = max(1, _CHUNK_WEIGHTS // columns)
        return [(start, min(rows, start + step)) for start in range(0, rows, step)]

    def stored(self, start: int, stop: int) -> Bytes:
        """Rows as the source stores them."""
        wanted = self.rows_of[start:stop]
        first = int(wanted.min())
        taken: Bytes = self.source.rows(first, int(wanted.max()) + 1)[wanted - first]
        return np.ascontiguousarray(taken)

    def floats(self, start: int, stop: int) -> Floats:
        """Rows as float32: dequantized, scaled, adapters added, in this order."""
        values = dequantize_rows(self.stored(start, stop), self.source.type)
        if self.scale != 1.0:
            values = values * np.float32(self.scale)
        if self.deltas:
            own = self.rows_of[start:stop] - self.expert * self.source.shape[-2]
            values = add_deltas(values, [delta.rows(self.expert, own) for delta in self.deltas])
        check_finite(self.source.name, values)
        return values

    def magnitude(self) -> float:
        """The largest absolute value."""
        return max(float(np.abs(self.floats(*chunk)).max(initial=0.0)) for chunk in self.chunks())

    def codes(self, start: int, stop: int, scale: float | None) -> tuple[Bytes, Bytes]:
        """E2M1 codes uint8 [n, columns/2] and E4M3 scales uint8 [n, columns/16]; carried over if `scale` is None, else
        quantized under that per-tensor scale."""
        if scale is None:
            return unpack_modelopt(self.stored(start, stop), self.name)
        values = self.floats(start, stop)
        columns = values.shape[1]
        padded = np.pad(values, ((0, 0), (0, -columns % BLOCK)))
        codes, scales = unpack_modelopt(native.quantize_nvfp4(padded, scale), self.name)
        return codes[:, : columns // 2], scales[:, : columns // GROUP]


def check_finite(name: str, values: Floats) -> None:
    """Raises QuantizeError if a value of tensor `name` is not finite, which no engine could run."""
    if not np.isfinite(values).all():
        raise QuantizeError(
            f"tensor {name!r}",
            "holds a value that is not finite",
            hint="the file is damaged or its training diverged: get it anew, or use an earlier checkpoint",
        )


def shared_scale(matrices: Sequence[Matrix]) -> float:
    """The per-tensor scale of matrices that are multiplied with the same input (ModelOpt's rule: amax / 2688)."""
    return tensor_scale(max(matrix.magnitude() for matrix in matrices))


def dequantize_rows(data: Bytes, kind: QuantType) -> Floats:
    """uint8 [n, row_bytes] of any type as float32 [n, columns]."""
    if kind.is_float:
        return float_rows(data, kind)
    values: Floats = (native if native.supports(kind) else reference).dequantize(data, kind)
    return values
