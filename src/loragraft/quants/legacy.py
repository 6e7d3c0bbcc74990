"""The types with one scale (and offset) per block, without super-blocks: Q1_0, Q2_0, Q4_0 ... Q8_0.

Source of the algorithms: quantize_row_*_ref and dequantize_row_* of llama.cpp's ggml-quants.c.
"""

from __future__ import annotations

import numpy as np

from loragraft.arrays import Bytes, Floats, Ints
from loragraft.quants import search
from loragraft.quants.arith import (
    F,
    block_rows,
    by_element,
    bytes_half,
    half_bytes,
    inverse,
    round_away,
    running_sum,
    truncate,
)
from loragraft.quants.codec import Codec


def pack_nibbles(codes: Ints) -> Bytes:
    """Codes [32, blocks] -> uint8 [blocks, 16]: weight j in the low half of byte j, weight j + 16 in the high half."""
    packed: Bytes = codes[:16].astype(np.uint8) | (codes[16:].astype(np.uint8) << np.uint8(4))
    return packed.T


def unpack_nibbles(qs: Bytes) -> Ints:
    """The inverse of `pack_nibbles`: uint8 [blocks, 16] -> [blocks, 32]."""
    return np.concatenate([qs & 15, qs >> 4], axis=1).astype(np.int32)


def pack_fifth_bits(codes: Ints) -> Bytes:
    """Bit 4 of codes [32, blocks] as uint8 [blocks, 4], weight j in bit j."""
    return np.packbits((codes.T & 16) != 0, axis=1, bitorder="little")


def unpack_fifth_bits(bits: Bytes) -> Ints:
    """The inverse, bits in place: uint8 [blocks, 4] -> 0 or 16 [blocks, 32]."""
    return np.unpackbits(bits, axis=1, bitorder="little").astype(np.int32) << 4


# ---- Q1_0: 128 signs and the mean magnitude


def _q1_0_quantize(x: Floats, importance: Floats | None) -> Bytes:
    by = by_element(x, 128)
    d = running_sum(np.abs(by)) / F(128)
    signs = np.packbits(by.T >= 0, axis=1, bitorder="little")
    return block_rows([half_bytes(d), signs], len(x))


def _q1_0_dequantize(data: Bytes) -> Floats:
    blocks = data.reshape(-1, 18)
    d = bytes_half(blocks[:, :2])[:, None]
    bits = np.unpackbits(blocks[:, 2:], axis=1, bitorder="little")
    return np.where(bits == 1, d, -d).reshape(len(data), -1)


# ---- Q2_0: 64 codes -1 .. 2 of the largest magnitude


def _q2_0_quantize(x: Floats, importance: Floats | None) -> Bytes:
    by = by_element(x, 64)
    d = np.abs(by).max(axis=0)
    codes = np.clip(round_away(by * inverse(d)) + np.int32(1), 0, 3).astype(np.uint8)
    packed = codes[0::4] | (codes[1::4] << 2) | (codes[2::4] << 4) | (codes[3::4] << 6)
    return block_rows([half_bytes(d), packed.T], len(x))


def _q2_0_dequantize(data: Bytes) -> Floats:
    blocks = data.reshape(-1, 18)
    codes = (blocks[:, 2:, None] >> np.array([0, 2, 4, 6], dtype=np.uint8)) & 3
    x = (codes.reshape(-1, 64).astype(np.float32) - F(1)) * bytes_half(blocks[:, :2])[:, None]
    return x.reshape(len(data), -1)


# ---- Q4_0, Q5_0: codes around zero; the largest weight becomes the lowest code


def _weighted(rows: Floats, importance: Floats) -> Floats:
    """importance * sqrt(mean square of the row + x^2): [32, blocks]."""
    sigma2 = running_sum(np.square(rows.T)) / F(rows.shape[1])
    weights = importance * np.sqrt(sigma2[:, None] + rows * rows)
    return by_element(weights, 32)


def _symmetric(x: Floats, importance: Floats | None, half: int) -> tuple[Floats, Ints]:
    """Scales [blocks] and codes 0 .. 2 * half - 1 [32, blocks] of blocks of 32."""
    by = by_element(x, 32)
    if importance is not None:
        return search.symmetric(by, _weighted(x, importance), half)
    d = search.largest(by) / F(-half)
    cast = truncate(by * inverse(d) + F(half + 0.5)).astype(np.int8)
    return d, np.minimum(2 * half - 1, cast.astype(np.int32))


def _q4_0_quantize(x: Floats, importance: Floats | None) -> Bytes:
    d, codes = _symmetric(x, importance, 8)
    return block_rows([half_bytes(d), pack_nibbles(codes)], len(x))


def _q4_0_dequantize(data: Bytes) -> Floats:
    blocks = data.reshape(-1, 18)
    codes = unpack_nibbles(blocks[:, 2:]) - 8
    return (codes.astype(np.float32) * bytes_half(blocks[:, :2])[:, None]).reshape(len(data), -1)


def _q5_0_quantize(x: Floats, importance: Floats | None) -> Bytes:
    d, codes = _symmetric(x, importance, 16)
    return block_rows([half_bytes(d), pack_fifth_bits(codes), pack_nibbles(codes & 15)], len(x))


def _q5_0_dequantize(data: Bytes) -> Floats:
    blocks = data.reshape(-1, 22)
    codes = (unpack_nibbles(blocks[:, 6:]) | unpack_fifth_bits(blocks[:, 2:6])) - 16
    return (codes.astype(np.float32) * bytes_half(blocks[:, :2])[:, None]).reshape(len(data), -1)


# ---- Q4_1, Q5_1: codes above the block's minimum


def _affine(x: Floats, importance: Floats | None, top: int) -> tuple[Floats, Floats, Ints]:
    """Scales, minima [blocks] and codes 0 .. top [32, blocks] of blocks of 32."""
    by = by_element(x, 32)
    if importance is not None:
        scale, negated, codes = search.affine(by, _weighted(x, importance), top, -0.9, 0.05, 36)
        return scale, -negated, codes
    low = np.full_like(by[0], np.finfo(np.float32).max)
    high = -low
    for row in by:
        low = np.where(row < low, row, low)
        high = np.where(row > high, row, high)
    d = (high - low) / F(top)
    cast = truncate((by - low) * inverse(d) + F(0.5)).astype(np.int8)
    return d, low, np.minimum(top, cast.astype(np.int32)) if top == 15 else cast.astype(np.int32)


def _q4_1_quantize(x: Floats, importance: Floats | None) -> Bytes:
    d, low, codes = _affine(x, importance, 15)
    return block_rows([half_bytes(d), half_bytes(low), pack_nibbles(codes)], len(x))


def _q4_1_dequantize(data: Bytes) -> Floats:
    blocks = data.reshape(-1, 20)
    codes = unpack_nibbles(blocks[:, 4:]).astype(np.float32)
    d, low = bytes_half(blocks[:, :2])[:, None], bytes_half(blocks[:, 2:4])[:, None]
    return (codes * d + low).reshape(len(data), -1)


def _q5_1_quantize(x: Floats, importance: Floats | None) -> Bytes:
    d, low, codes = _affine(x, importance, 31)
    parts = [half_bytes(d), half_bytes(low), pack_fifth_bits(codes), pack_nibbles(codes & 15)]
    return block_rows(parts, len(x))


def _q5_1_dequantize(data: Bytes) -> Floats:
    blocks = data.reshape(-1, 24)
    codes = (unpack_nibbles(blocks[:, 8:]) | unpack_fifth_bits(blocks[:, 4:8])).astype(np.float32)
    d, low = bytes_half(blocks[:, :2])[:, None], bytes_half(blocks[:, 2:4])[:, None]
    return (codes * d + low).reshape(len(data), -1)


# ---- Q8_0


def _q8_0_quantize(x: Floats, importance: Floats | None) -> Bytes:
    by = by_element(x, 32)
    d = np.abs(by).max(axis=0) / F(127)
    codes = round_away(by * inverse(d)).astype(np.int8)
    return block_rows([half_bytes(d), codes.T.view(np.uint8)], len(x))


def _q8_0_dequantize(data: Bytes) -> Floats:
    blocks = data.reshape(-1, 34)
    codes = blocks[:, 2:].view(np.int8).astype(np.float32)
    return (codes * bytes_half(blocks[:, :2])[:, None]).reshape(len(data), -1)


CODECS = {
    "Q1_0": Codec(_q1_0_quantize, _q1_0_dequantize),
    "Q2_0": Codec(_q2_0_quantize, _q2_0_dequantize),
    "Q4_0": Codec(_q4_0_quantize, _q4_0_dequantize),
    "Q4_1": Codec(_q4_1_quantize, _q4_1_dequantize),
    "Q5_0": Codec(_q5_0_quantize, _q5_0_dequantize),
    "Q5_1": Codec(_q5_1_quantize, _q5_1_dequantize),
    "Q8_0": Codec(_q8_0_quantize, _q8_0_dequantize),
}
