"""The arithmetic of the pass, for some rows of one tensor: dequantize, scale, add deltas, round, quantize.

The native core does it in one call on a block of floats that fits the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from loragraft import _native
from loragraft.arrays import Bytes, Floats
from loragraft.errors import QuantizeError
from loragraft.quants.types import F32, QuantType
from loragraft.streaming.steps import Chunk

if TYPE_CHECKING:
    from loragraft.adapters.delta import Delta


def encode(chunk: Chunk, rows: Bytes, out: Bytes | None, subject: Path | str) -> None:
    """Make `out`, the rows of the output, of `rows`, those of the source; or only look at these, if it is None.

    Raises `QuantizeError`, which names `subject`, tensor, row and column, for a weight that is not finite or that the
    output's type cannot hold.
    """
    step = chunk.step
    if out is None and not step.source.type.holds_weights:
        return
    fault, row, column = _stream(chunk, rows, out, step.type, through_f16=step.through_f16)
    if fault:
        raise _fault(subject, chunk, fault, row, column)


def floats_of(chunk: Chunk, *, rounded: bool = True) -> Floats:
    """The weights of a chunk as float32 [rows, columns]: dequantized, scaled, merged, and, if they are to be `rounded`,
    through F16 where the step says so. Raises as `encode`."""
    source = chunk.step.source
    out = np.empty((chunk.stop - chunk.start, source.columns), np.float32)
    rows, through_f16 = source.rows(chunk.start, chunk.stop), rounded and chunk.step.through_f16
    fault, row, column = _stream(chunk, rows, out.view(np.uint8), F32, through_f16=through_f16)
    if fault:
        raise _fault(source.name, chunk, fault, row, column)
    return out


def _stream(
    chunk: Chunk, rows: Bytes, out: Bytes | None, kind: QuantType, *, through_f16: bool
) -> tuple[int, int, int]:
    step, source = chunk.step, chunk.step.source
    matrix = chunk.start // step.matrix_rows
    first, last = chunk.start - matrix * step.matrix_rows, chunk.stop - matrix * step.matrix_rows
    deltas = [delta.rows(matrix, slice(first, last)) for delta in step.deltas]
    stored, multiplier = source.type, 1.0
    if step.multiplier is not None:
        multiplier = float(step.multiplier[matrix % len(step.multiplier)])
    if not all(delta.is_plain for delta in deltas):
        from loragraft.adapters.delta import combine

        plain = np.empty((len(rows), source.columns), np.float32)
        fault = _native_rows(rows, stored, plain.view(np.uint8), F32, (), multiplier)
        if fault[0]:
            return fault
        merged = np.ascontiguousarray(combine(plain, deltas, _plus))
        rows, stored, deltas, multiplier = merged.view(np.uint8), F32, [], 1.0
    importance = None if step.importance is None else step.importance[matrix % len(step.importance)]
    scale = 0.0 if step.scales is None else float(step.scales[matrix])
    return _native_rows(
        rows,
        stored,
        out,
        kind,
        cast("list[Delta]", deltas),
        multiplier,
        importance,
        scale,
        through_f16=through_f16,
    )


def _plus(weights: Floats, delta: Delta) -> Floats:
    out = np.empty_like(weights)
    _native_rows(weights.view(np.uint8), F32, out.view(np.uint8), F32, [delta])
    return out


def _native_rows(
    rows: Bytes,
    stored: QuantType,
    out: Bytes | None,
    kind: QuantType,
    deltas: Sequence[Delta],
    multiplier: float = 1.0,
    importance: Floats | None = None,
    scale: float = 0.0,
    *,
    through_f16: bool = False,
) -> tuple[int, int, int]:
    pairs = [(delta.a, delta.b, delta.scale) for delta in deltas]
    columns = rows.shape[1] // stored.bytes * stored.block
    result: tuple[int, int, int] = _native.stream_rows(
        rows, stored.id, out, kind.id, len(rows), columns, pairs, through_f16, importance, multiplier, scale
    )
    return result


_INPUT, _RANGE, _SCALE = 1, 2, 3


def _fault(subject: Path | str, chunk: Chunk, fault: int, row: int, column: int) -> QuantizeError:
    step = chunk.step
    place = f"tensor {step.source.name!r}, row {chunk.start + row}, column {column}"
    if fault == _INPUT:
        what = "is not finite" if step.source.type.is_float else "begins a block whose scale is not finite"
        return QuantizeError(
            subject,
            f"{place} {what}",
            hint="the file is damaged or its training diverged: download it again, or use an earlier checkpoint",
        )
    if fault == _RANGE:
        through = "F16" if step.through_f16 else step.type.name
        return QuantizeError(
            subject,
            f"{place} does not fit {through}",
            hint="a smaller scale of the adapter, or --type BF16 or F32, keeps the value",
        )
    return QuantizeError(
        subject,
        f"{place} has a block whose scale does not fit {step.type}",
        expected="weights below about 65504 times the type's largest code",
        hint=f"keep the tensor in F32: --tensor-type {step.name}=F32",
    )
