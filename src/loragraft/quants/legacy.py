"""The types with one scale (and offset) per block, without super-blocks: Q1_0, Q2_0, Q4_0 ... Q8_0.

Source of the algorithms: quantize_row_*_ref and dequantize_row_* of llama.cpp's ggml-quants.c.
"""

from __future__ import annotations

import numpy as np

from loragraft.quants.arith import (
    F,
    by_element,
    bytes_half,
    half_bytes,
    round_away,
    running_sum,
    truncate,
)
from loragraft.quants.codec import Bytes, Codec, Floats, Ints


def _inverse(d: Floats) -> Floats:
    return np.where(d != 0, F(1) / d, F(0))


def _largest(x: Floats) -> Floats:
    """Of every block, the weight of largest magnitude with its sign; the first one wins; never -0. `x`: [n, blocks]."""
    first = np.argmax(np.abs(x), axis=0)
    largest: Floats = x[first, np.arange(x.shape[1])] + F(0)
    return largest


def _rows(parts: list[Bytes], rows: int) -> Bytes:
    """The parts of every block, each [blocks, bytes], side by side as rows."""
    return np.concatenate(parts, axis=1).reshape(rows, -1)


def _nibbles(codes: Ints) -> Bytes:
    """Codes [32, blocks] -> uint8 [blocks, 16]: weight j in the low half of byte j, weight j + 16 in the high half."""
    packed: Bytes = codes[:16].astype(np.uint8) | (codes[16:].astype(np.uint8) << np.uint8(4))
    return packed.T


def _halves(qs: Bytes) -> Ints:
    """The inverse of `_nibbles`: uint8 [blocks, 16] -> [blocks, 32]."""
    return np.concatenate([qs & 15, qs >> 4], axis=1).astype(np.int32)


def _fifth_bits(codes: Ints) -> Bytes:
    """Bit 4 of codes [32, blocks] as uint8 [blocks, 4], weight j in bit j."""
    return np.packbits((codes.T & 16) != 0, axis=1, bitorder="little")


# ---- Q1_0: 128 signs and the mean magnitude


def _q1_0_quantize(x: Floats, importance: Floats | None) -> Bytes:
    by = by_element(x, 128)
    d = running_sum(np.abs(by)) / F(128)
    signs = np.packbits(by.T >= 0, axis=1, bitorder="little")
    return _rows([half_bytes(d), signs], len(x))


def _q1_0_dequantize(data: Bytes) -> Floats:
    blocks = data.reshape(-1, 18)
    d = bytes_half(blocks[:, :2])[:, None]
    bits = np.unpackbits(blocks[:, 2:], axis=1, bitorder="little")
    return np.where(bits == 1, d, -d).reshape(len(data), -1)


# ---- Q2_0: 64 codes -1 .. 2 of the largest magnitude


def _q2_0_quantize(x: Floats, importance: Floats | None) -> Bytes:
    by = by_element(x, 64)
    d = np.abs(by).max(axis=0)
    codes = np.clip(round_away(by * _inverse(d)) + np.int32(1), 0, 3).astype(np.uint8)
    packed = codes[0::4] | (codes[1::4] << 2) | (codes[2::4] << 4) | (codes[3::4] << 6)
    return _rows([half_bytes(d), packed.T], len(x))


def _q2_0_dequantize(data: Bytes) -> Floats:
    blocks = data.reshape(-1, 18)
    codes = (blocks[:, 2:, None] >> np.array([0, 2, 4, 6], dtype=np.uint8)) & 3
    x = (codes.reshape(-1, 64).astype(np.float32) - F(1)) * bytes_half(blocks[:, :2])[:, None]
    return x.reshape(len(data), -1)


# ---- Q4_0, Q5_0: codes around zero; the largest weight becomes the lowest code


def _symmetric(x: Floats, half: int) -> tuple[Floats, Ints]:
    """Scales [blocks] and codes 0 .. 2 * half - 1 [32, blocks] of blocks of 32."""
    by = by_element(x, 32)
    d = _largest(by) / F(-half)
    cast = truncate(by * _inverse(d) + F(half + 0.5)).astype(np.int8)
    return d, np.minimum(2 * half - 1, cast.astype(np.int32))


def _q4_0_quantize(x: Floats, importance: Floats | None) -> Bytes:
    d, codes = _symmetric(x, 8)
    return _rows([half_bytes(d), _nibbles(codes)], len(x))


def _q4_0_dequantize(data: Bytes) -> Floats:
    blocks = data.reshape(-1, 18)
    codes = _halves(blocks[:, 2:]) - 8
    return (codes.astype(np.float32) * bytes_half(blocks[:, :2])[:, None]).reshape(len(data), -1)


# ---- Q8_0


def _q8_0_quantize(x: Floats, importance: Floats | None) -> Bytes:
    by = by_element(x, 32)
    d = np.abs(by).max(axis=0) / F(127)
    codes = round_away(by * _inverse(d)).astype(np.int8)
    return _rows([half_bytes(d), codes.T.view(np.uint8)], len(x))


def _q8_0_dequantize(data: Bytes) -> Floats:
    blocks = data.reshape(-1, 34)
    codes = blocks[:, 2:].view(np.int8).astype(np.float32)
    return (codes * bytes_half(blocks[:, :2])[:, None]).reshape(len(data), -1)


CODECS = {
    "Q1_0": Codec(_q1_0_quantize, _q1_0_dequantize),
    "Q2_0": Codec(_q2_0_quantize, _q2_0_dequantize),
    "Q4_0": Codec(_q4_0_quantize, _q4_0_dequantize),
    "Q8_0": Codec(_q8_0_quantize, _q8_0_dequantize),
}
