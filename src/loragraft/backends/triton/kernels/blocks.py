"""Weights as they are stored, in planes: the weights of a plane lie in the same bits of their bytes.

`weights` gives weights `j` of plane PLANE of rows that begin at `row`; `columns` says which columns these are. A
product takes the planes one after the other, so nothing has to be put in order. The layouts are those of
loragraft.quants, which has them in NumPy.
"""

from __future__ import annotations

import numpy as np
import triton
import triton.language as tl

from loragraft.quants.fp4 import E2M1_DOUBLED, UE4M3_HALVED
from loragraft.quants.iq4 import VALUES as IQ4_VALUES

PLANES = {
    "F32": 1,
    "F16": 1,
    "BF16": 1,
    "Q8_0": 1,
    "Q4_0": 2,
    "IQ4_NL": 2,
    "MXFP4": 2,
    "NVFP4": 2,
    "Q4_K": 2,
    "Q5_K": 2,
    "IQ4_XS": 2,
    "Q6_K": 4,
}
"""Of every type that the kernels read."""

TABLE = np.concatenate([IQ4_VALUES, E2M1_DOUBLED, UE4M3_HALVED[:128]]).astype(np.float32)
"""What kernels look up: the values of IQ4's codes, those of E2M1, those of E4M3 without a sign."""
_IQ4 = tl.constexpr(0)
_E2M1 = tl.constexpr(16)
_E4M3 = tl.constexpr(32)


@triton.jit
def columns(KIND: tl.constexpr, PLANE: tl.constexpr, j):
    if KIND == "Q4_0" or KIND == "IQ4_NL" or KIND == "MXFP4" or KIND == "IQ4_XS":
        found = j // 16 * 32 + PLANE * 16 + j % 16
    elif KIND == "NVFP4":
        found = j // 8 * 16 + PLANE * 8 + j % 8
    elif KIND == "Q4_K" or KIND == "Q5_K":
        found = j // 32 * 64 + PLANE * 32 + j % 32
    elif KIND == "Q6_K":
        found = j // 32 * 128 + PLANE * 32 + j % 32
    else:
        found = j
    return found


@triton.jit
def weights(KIND: tl.constexpr, PLANE: tl.constexpr, row, j, mask, table):
    """float32, in the shape of row + j; 0 where `mask` is not."""
    if KIND == "F32":
        found = tl.load((row + j * 4).to(tl.pointer_type(tl.float32)), mask=mask, other=0.0)
    elif KIND == "F16":
        found = tl.load((row + j * 2).to(tl.pointer_type(tl.float16)), mask=mask, other=0.0).to(tl.float32)
    elif KIND == "BF16":
        bits = tl.load((row + j * 2).to(tl.pointer_type(tl.int16)), mask=mask, other=0).to(tl.int32)
        found = (bits << 16).to(tl.float32, bitcast=True)
    elif KIND == "Q8_0":
        block = row + j // 32 * 34
        code = tl.load((block + 2 + j % 32).to(tl.pointer_type(tl.int8)), mask=mask, other=0)
        found = _half(block, mask) * code.to(tl.float32)
    elif KIND == "Q4_0":
        block = row + j // 16 * 18
        found = _half(block, mask) * (_nibble(block + 2 + j % 16, PLANE, mask) - 8).to(tl.float32)
    elif KIND == "IQ4_NL":
        block = row + j // 16 * 18
        code = _nibble(block + 2 + j % 16, PLANE, mask)
        found = _half(block, mask) * tl.load(table + _IQ4 + code)
    elif KIND == "MXFP4":
        block = row + j // 16 * 17
        code = _nibble(block + 1 + j % 16, PLANE, mask)
        found = _e8m0(_byte(block, mask)) * tl.load(table + _E2M1 + code)
    elif KIND == "NVFP4":
        block, part = row + j // 32 * 36, j // 8 % 4
        scale = tl.load(table + _E4M3 + (_byte(block + part, mask) & 127))
        code = _nibble(block + 4 + part * 8 + j % 8, PLANE, mask)
        found = scale * tl.load(table + _E2M1 + code)
    elif KIND == "Q4_K":
        block, part = row + j // 128 * 144, j // 32 % 4
        code = _nibble(block + 16 + j % 128, PLANE, mask)
        scale, low = _scale_and_minimum(block + 4, part * 2 + PLANE, mask)
        found = _half(block, mask) * scale * code.to(tl.float32) - _half(block + 2, mask) * low
    elif KIND == "Q5_K":
        block, part = row + j // 128 * 176, j // 32 % 4
        sub = part * 2 + PLANE
        top = (_byte(block + 16 + j % 32, mask) >> sub) & 1
        code = _nibble(block + 48 + j % 128, PLANE, mask) | top << 4
        scale, low = _scale_and_minimum(block + 4, sub, mask)
        found = _half(block, mask) * scale * code.to(tl.float32) - _half(block + 2, mask) * low
    elif KIND == "IQ4_XS":
        block, part = row + j // 128 * 136, j // 16 % 8
        high = (_byte(block + 2 + part // 4, mask) >> part % 4 * 2) & 3
        low = (_byte(block + 4 + part // 2, mask) >> part % 2 * 4) & 15
        scale = _half(block, mask) * ((low | high << 4) - 32).to(tl.float32)
        code = _nibble(block + 8 + j % 128, PLANE, mask)
        found = scale * tl.load(table + _IQ4 + code)
    else:
        tl.static_assert(KIND == "Q6_K")
        block, half = row + j // 64 * 210, j // 32 % 2
        low = _nibble(block + half * 64 + PLANE % 2 * 32 + j % 32, PLANE // 2, mask)
        high = (_byte(block + 128 + half * 32 + j % 32, mask) >> PLANE * 2) & 3
        at = (block + 192 + half * 8 + PLANE * 2 + j % 32 // 16).to(tl.pointer_type(tl.int8))
        scale = tl.load(at, mask=mask, other=0).to(tl.float32)
        found = _half(block + 208, mask) * scale * ((low | high << 4) - 32).to(tl.float32)
    return found


@triton.jit
def _byte(at, mask):
    return tl.load(at, mask=mask, other=0).to(tl.int32)


@triton.jit
def _nibble(at, PLANE: tl.constexpr, mask):
    return (_byte(at, mask) >> PLANE * 4) & 15


@triton.jit
def _half(at, mask):
    return tl.load(at.to(tl.pointer_type(tl.float16)), mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _e8m0(code):
    """Half the power of two that the byte means, 2^(e - 128); 0 and 1 are subnormal."""
    return tl.where(code < 2, 0x00200000 << (code & 1), (code - 1) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _scale_and_minimum(at, part, mask):
    """Scale and minimum `part` of the eight in 12 bytes (Q4_K, Q5_K)."""
    within = part % 4
    a, b, c = _byte(at + within, mask), _byte(at + 4 + within, mask), _byte(at + 8 + within, mask)
    scale = tl.where(part < 4, a & 63, (c & 15) | (a >> 6) << 4)
    low = tl.where(part < 4, b & 63, (c >> 4) | (b >> 6) << 4)
    return scale.to(tl.float32), low.to(tl.float32)
