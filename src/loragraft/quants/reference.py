"""Quantization in NumPy: the exact reference for every type, and what runs where the native core lacks one.

Written from the algorithms of llama.cpp's ggml-quants.c and byte-identical to its x86-64 build; slow, but with
nothing between the reader and the arithmetic. The native core must return the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from loragraft.arrays import Bytes, Floats
from loragraft.errors import QuantizeError, UnsupportedError
from loragraft.quants import floats, fp4, iq1, iq4, iq_lattice, kquants, legacy, ternary
from loragraft.quants.codec import Codec
from loragraft.quants.types import QuantType

_CHUNK = 1 << 20  # weights at a time: bounds the temporaries to some hundred megabytes


def _join(*tables: Mapping[str, Codec]) -> dict[str, Codec]:
    joined: dict[str, Codec] = {}
    for table in tables:
        if twice := joined.keys() & table.keys():
            raise AssertionError(f"two implementations of {', '.join(sorted(twice))}")
        joined.update(table)
    return joined


_FAMILIES = (floats, legacy, kquants, fp4, ternary, iq4, iq_lattice, iq1)
CODECS = _join(*(family.CODECS for family in _FAMILIES))
"""Every implemented type by name; one table per family module."""


def supports(kind: QuantType) -> bool:
    """Whether both directions of `kind` are implemented."""
    return kind.name in CODECS


def quantize(x: Floats, kind: QuantType, importance: Floats | None = None) -> Bytes:
    """Rows of weights as rows of `kind`.

    `x`: float32 [rows, cols]; `importance`: float32 [cols], one weight per column, or None for the plain algorithm.
    Returns uint8 [rows, row_bytes]. Raises UnsupportedError when the type is unknown here or does not divide a row,
    QuantizeError when a shape is wrong.
    """
    codec = _codec(kind)
    x, importance = check_input(x, kind, importance)
    rows, columns = x.shape
    out = np.empty((rows, kind.row_bytes(columns)), dtype=np.uint8)
    step = max(1, _CHUNK // max(1, columns))
    with np.errstate(all="ignore"):
        for start in range(0, rows, step):
            out[start : start + step] = codec.quantize(x[start : start + step], importance)
    return out


def dequantize(data: Bytes, kind: QuantType) -> Floats:
    """Rows of `kind` as float32: uint8 [rows, row_bytes] -> float32 [rows, cols]. Raises as `quantize` does."""
    codec = _codec(kind)
    data = check_data(data, kind)
    rows, row_bytes = data.shape
    out = np.empty((rows, row_bytes // kind.bytes * kind.block), dtype=np.float32)
    step = max(1, _CHUNK // max(1, out.shape[1]))
    with np.errstate(all="ignore"):
        for start in range(0, rows, step):
            out[start : start + step] = codec.dequantize(data[start : start + step])
    return out


def check_input(x: Floats, kind: QuantType, importance: Floats | None) -> tuple[Floats, Floats | None]:
    """`x` and `importance` as contiguous float32 of fitting shapes, or QuantizeError / UnsupportedError."""
    if x.ndim != 2:
        raise QuantizeError(
            kind.name, "weights must be rows", found=f"shape {x.shape}", expected="[rows, columns]"
        )
    kind.row_bytes(x.shape[1])
    if importance is not None:
        if importance.shape != (x.shape[1],):
            raise QuantizeError(
                kind.name,
                "importance must hold one weight per column",
                found=f"shape {importance.shape}",
                expected=f"({x.shape[1]},)",
            )
        importance = np.ascontiguousarray(importance, dtype=np.float32)
    return np.ascontiguousarray(x, dtype=np.float32), importance


def check_data(data: Bytes, kind: QuantType) -> Bytes:
    """`data` as contiguous rows of whole blocks, or QuantizeError."""
    if data.ndim != 2 or data.dtype != np.uint8 or data.shape[1] % kind.bytes:
        raise QuantizeError(
            kind.name,
            "not rows of whole blocks",
            found=f"{data.dtype} of shape {data.shape}",
            expected=f"uint8 [rows, a multiple of {kind.bytes}]",
        )
    return np.ascontiguousarray(data)


def _codec(kind: QuantType) -> Codec:
    try:
        return CODECS[kind.name]
    except KeyError:
        raise UnsupportedError(
            kind.name, "cannot be quantized to or from", expected=", ".join(CODECS)
        ) from None
