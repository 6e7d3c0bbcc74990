"""F32, F16 and BF16 as tensor types: conversions with ggml's rounding and NaN handling."""

from __future__ import annotations

import numpy as np

from loragraft.arrays import Bytes, Floats
from loragraft.quants.arith import from_half, to_half
from loragraft.quants.codec import Codec


def _f32_quantize(x: Floats, importance: Floats | None) -> Bytes:
    return x.astype("<f4").view(np.uint8)


def _f32_dequantize(data: Bytes) -> Floats:
    return data.view("<f4").astype(np.float32)


def _f16_quantize(x: Floats, importance: Floats | None) -> Bytes:
    return to_half(x).astype("<u2").view(np.uint8)


def _f16_dequantize(data: Bytes) -> Floats:
    return from_half(data.view("<u2").astype(np.uint16))


def _bf16_quantize(x: Floats, importance: Floats | None) -> Bytes:
    """Round to nearest even; NaN keeps its upper bits and becomes quiet."""
    bits = x.view(np.uint32)
    rounded = (bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))) >> np.uint32(16)
    quiet = (bits >> np.uint32(16)) | np.uint32(64)
    return np.where(np.isnan(x), quiet, rounded).astype("<u2").view(np.uint8)


def _bf16_dequantize(data: Bytes) -> Floats:
    return (data.view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)


CODECS = {
    "F32": Codec(_f32_quantize, _f32_dequantize),
    "F16": Codec(_f16_quantize, _f16_dequantize),
    "BF16": Codec(_bf16_quantize, _bf16_dequantize),
}
