"""Quantization by the native core; same functions and same bytes as `quants.reference`."""

from __future__ import annotations

import numpy as np

from loragraft import _native
from loragraft.arrays import Bytes, Floats
from loragraft.errors import UnsupportedError
from loragraft.quants.nvfp4 import NVFP4, check_scale
from loragraft.quants.reference import check_data, check_input
from loragraft.quants.types import QuantType


def supports(kind: QuantType) -> bool:
    """Whether the native core has kernels for `kind`."""
    return bool(_native.supports(kind.id))


def isas() -> list[str]:
    """The instruction sets of this build that this machine can run, best first."""
    return list(_native.isas())


def quantize(x: Floats, kind: QuantType, importance: Floats | None = None, *, isa: str = "") -> Bytes:
    """Rows of weights as rows of `kind`: see `reference.quantize`. One thread; releases the GIL.

    `isa` names another instruction set's kernels than the machine's best.
    """
    _require(kind)
    x, importance = check_input(x, kind, importance)
    out = np.empty((x.shape[0], kind.row_bytes(x.shape[1])), dtype=np.uint8)
    _native.quantize(x, out, kind.id, importance, isa)
    return out


def dequantize(data: Bytes, kind: QuantType, *, isa: str = "") -> Floats:
    """Rows of `kind` as float32: see `reference.dequantize`."""
    _require(kind)
    data = check_data(data, kind)
    out = np.empty((data.shape[0], data.shape[1] // kind.bytes * kind.block), dtype=np.float32)
    _native.dequantize(data, out, kind.id, isa)
    return out


def quantize_nvfp4(x: Floats, scale: float, importance: Floats | None = None, *, isa: str = "") -> Bytes:
    """Rows of NVFP4 under a per-tensor scale: see `nvfp4.quantize_nvfp4`. One thread; releases the GIL."""
    check_scale(scale)
    x, importance = check_input(x, NVFP4, importance)
    out = np.empty((x.shape[0], NVFP4.row_bytes(x.shape[1])), dtype=np.uint8)
    _native.quantize_nvfp4(x, out, scale, importance, isa)
    return out


def product(
    a: Floats, b: Floats, out: Floats | None = None, *, add: bool = False, upper: bool = False, isa: str = ""
) -> Floats:
    """a [rows, depth] times b [depth, columns], float32 in any layout; into `out` (whose columns lie together), or
    added to it. One thread; releases the GIL. An element's sum has one order, whatever part of a product is asked for.

    `upper`: only what lies on or above the diagonal is wanted, the rest of `out` is undefined.
    """
    if out is None:
        out, add = np.empty((a.shape[0], b.shape[1]), np.float32), False
    _native.product(a, b, out, add, upper, isa)
    return out


def _require(kind: QuantType) -> None:
    if not supports(kind):
        raise UnsupportedError(kind.name, "the native core has no kernel for it")
