"""MXFP4 and NVFP4 as ggml defines them: the codes, the scales, ggml's own quantizers, the decoders.

Both store E2M1 codes (a sign, two exponent bits, one mantissa bit); MXFP4 has one power of two per 32 weights,
NVFP4 one E4M3 number per 16. ggml keeps the codes' values doubled, so that they are whole, and halves the scales.
ggml's NVFP4 quantizer has no per-tensor scale and rounds its block scales badly; `quants.nvfp4` has the one to use.

Source: block_mxfp4, block_nvfp4 in ggml-common.h; quantize_row_{mxfp4,nvfp4}_ref in ggml-quants.c; the scales'
codecs in ggml-impl.h. Neither quantizer looks at an importance matrix.
"""

from __future__ import annotations

import numpy as np

from loragraft.arrays import Bytes, Floats
from loragraft.quants.arith import F
from loragraft.quants.codec import Codec

E2M1_DOUBLED = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.float32)
"""The value of each E2M1 code, doubled; code 8 is minus zero."""


def _e8m0_halved() -> Floats:
    """Half the power of two that each E8M0 byte means: 2^(e - 128), denormal for 0 and 1."""
    bits = np.arange(256, dtype=np.uint32)
    return np.where(bits < 2, 0x00200000 << bits, (bits - 1) << 23).astype(np.uint32).view(np.float32)


def _ue4m3_halved() -> Floats:
    """Half the value that ggml reads from each scale byte: the sign bit ignored, 0x7F (NaN) read as 0."""
    code = np.arange(256)
    exponent, mantissa = code >> 3 & 15, code & 7
    value = np.where(exponent == 0, np.ldexp(mantissa, -9), np.ldexp(1 + mantissa / 8, exponent - 7))
    value[0x7F] = 0
    return np.asarray(value / 2, np.float32)


E8M0_HALVED = _e8m0_halved()
UE4M3_HALVED = _ue4m3_halved()


def nearest_codes(x: Floats, scale: Floats) -> Bytes:
    """ggml's search over the codes in their order, the first of equals winning: ties go toward zero, and minus
    zero never comes up. The negative half mirrors the positive one, so magnitudes suffice."""
    magnitude = np.abs(x)
    best = np.zeros(x.shape, np.uint8)
    best_error = magnitude.copy()
    for code in range(1, 8):
        error = np.abs(E2M1_DOUBLED[code] * scale - magnitude)
        closer = error < best_error
        best[closer] = code
        np.copyto(best_error, error, where=closer)
    best[(x < 0) & (best > 0)] |= 8
    return best


def pack_halves(codes: Bytes) -> Bytes:
    """Codes [..., m] -> bytes [..., m/2]; the first half lies in the low nibbles."""
    half = codes.shape[-1] // 2
    return np.asarray(codes[..., :half] | codes[..., half:] << 4, np.uint8)


def unpack_halves(data: Bytes) -> Bytes:
    """The inverse of `pack_halves`."""
    return np.concatenate([data & 15, data >> 4], axis=-1)


# ---- MXFP4: an exponent, then 32 codes


def _mxfp4_quantize(x: Floats, importance: Floats | None) -> Bytes:
    blocks = x.reshape(-1, 32)
    amax = np.abs(blocks).max(axis=1)
    # ggml takes log2f. The float nearest to the true logarithm has the same floor as glibc's for every float.
    # Below 2^-125 the exponent is negative and wraps when it becomes a byte.
    some = amax > 0
    log2 = np.floor(np.log2(np.where(some, amax, 1).astype(np.float64)).astype(np.float32))
    exponent = np.where(some, log2.astype(np.int32) + 125, 0).astype(np.uint8)
    codes = nearest_codes(blocks, E8M0_HALVED[exponent][:, None])
    return np.concatenate([exponent[:, None], pack_halves(codes)], axis=1).reshape(len(x), -1)


def _mxfp4_dequantize(data: Bytes) -> Floats:
    blocks = data.reshape(-1, 17)
    return (E2M1_DOUBLED[unpack_halves(blocks[:, 1:])] * E8M0_HALVED[blocks[:, :1]]).reshape(len(data), -1)


# ---- NVFP4: four scales, then 4 x 16 codes


def _naive_ue4m3(x: Floats) -> Bytes:
    """ggml's scale encoder: halves away from zero, and everything in [248, 448) becomes 448."""
    bits = np.minimum(x, F(448)).view(np.uint32)
    exponent = (bits >> 23).astype(np.int32) - 120
    mantissa = (bits >> 20 & 7) + (bits >> 19 & 1)  # 8 carries into the exponent, as it should
    normal = (exponent << 3) + mantissa.astype(np.int32)
    subnormal = np.minimum((np.minimum(x, F(1)) * F(512) + F(0.5)).astype(np.int32), 7)
    code = np.where(exponent <= 0, subnormal, np.where(normal >= 15 << 3, 0x7E, normal))
    return np.where(x > 0, code, 0).astype(np.uint8)


def _nvfp4_quantize(x: Floats, importance: Floats | None) -> Bytes:
    sub = x.reshape(-1, 4, 16)
    scales = _naive_ue4m3(np.abs(sub).max(axis=2) / F(6))
    codes = nearest_codes(sub, UE4M3_HALVED[scales][:, :, None])
    return np.concatenate([scales, pack_halves(codes).reshape(-1, 32)], axis=1).reshape(len(x), -1)


def _nvfp4_dequantize(data: Bytes) -> Floats:
    """Without the per-tensor scale, which is not a part of the blocks."""
    blocks = data.reshape(-1, 36)
    codes = unpack_halves(blocks[:, 4:].reshape(-1, 4, 8))
    return (E2M1_DOUBLED[codes] * UE4M3_HALVED[blocks[:, :4], None]).reshape(len(data), -1)


CODECS = {
    "MXFP4": Codec(_mxfp4_quantize, _mxfp4_dequantize),
    "NVFP4": Codec(_nvfp4_quantize, _nvfp4_dequantize),
}
