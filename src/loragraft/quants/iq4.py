"""IQ4_NL and IQ4_XS: 4-bit codes for 16 unevenly spaced values, a scale per 32 weights.

IQ4_NL keeps each scale in half precision, IQ4_XS in six bits under one half-precision scale per 256.
Source: quantize_row_iq4_nl_impl, best_index_int8 and dequantize_row_iq4_* in ggml-quants.c. llama-quantize takes
this search with or without an importance matrix; only the weights of the squared errors differ.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from loragraft.arrays import Bytes, Floats, Ints
from loragraft.quants.arith import (
    F,
    by_element,
    bytes_half,
    half_bytes,
    inverse,
    nearest_int,
    result_bytes,
    running_sum,
)
from loragraft.quants.codec import Codec
from loragraft.quants.fp4 import pack_halves, unpack_halves

VALUES = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
_MIDDLES = (VALUES[1:] + VALUES[:-1]) / F(2)
_TRIES = 7
_TINY = F(1e-15)


def _nearest(v: Floats) -> Bytes:
    """The code of the nearest value; ties go up, NaN to the last one. (ggml compares the two distances, which
    are exact wherever they are close to equal, so this is its choice too.)"""
    code = np.zeros(v.shape, np.uint8)
    for middle in _MIDDLES:
        code += ~(v < middle)
    return code


def weights(x: Floats, importance: Floats | None, super_block: int, factor: float = 2.0) -> Floats:
    """The weight of every weight's squared error; all [rows, cols], `super_block` dividing cols.

    x^2, or with an importance matrix, importance * sqrt(sigma^2 + x^2) where sigma^2 is `factor` times the mean
    square of the super-block.
    """
    if importance is None:
        return x * x
    squares = by_element(x, super_block)
    sigma2 = running_sum(squares * squares) * F(factor / super_block)
    spread = np.repeat(sigma2, super_block).reshape(x.shape)
    return np.asarray(importance * np.sqrt(spread + x * x), np.float32)


def _scales(x: Floats, w: Floats) -> Floats:
    """The best of 16 scales for every sub-block; x, w: [32, n] -> [n]."""
    first = np.argmax(np.abs(x), axis=0)
    largest = x[first, np.arange(x.shape[1])]
    small = np.abs(largest) < _TINY
    largest = np.where(small, F(1), largest)

    def fit(inverse: Floats) -> tuple[Floats, Floats]:
        q = VALUES[_nearest(inverse * x)]
        wq = w * q
        return running_sum(wq * x), running_sum(wq * q)

    d = -largest / VALUES[0]
    sumqx, sumq2 = fit(F(1) / d)
    d = np.where(sumq2 > 0, sumqx / sumq2, F(0))
    best = d * sumqx
    for step in range(-_TRIES, _TRIES + 1):
        sumqx, sumq2 = fit((F(step) + VALUES[0]) / largest)
        better = (sumq2 > 0) & (sumqx * sumqx > best * sumq2)
        d = np.where(better, sumqx / sumq2, d)
        best = np.where(better, d * sumqx, best)
    return np.where(small, F(0), d)


# ---- IQ4_NL


def _iq4_nl_quantize(x: Floats, importance: Floats | None) -> Bytes:
    w = weights(x, importance, 32)
    blocks = by_element(x, 32)
    d = _scales(blocks, by_element(w, 32))
    codes = _nearest(inverse(d) * blocks).T
    return np.concatenate([result_bytes(d), pack_halves(codes)], axis=1).reshape(len(x), -1)


def _iq4_nl_dequantize(data: Bytes) -> Floats:
    blocks = data.reshape(-1, 18)
    d = bytes_half(blocks[:, :2])[:, None]
    return (d * VALUES[unpack_halves(blocks[:, 2:])]).reshape(len(data), -1)


# ---- IQ4_XS: d, the scales' high bits (2 each in a uint16), their low nibbles (4 bytes), 8 x 16 bytes of codes


def _iq4_xs_quantize(x: Floats, importance: Floats | None) -> Bytes:
    w = weights(x, importance, 256)
    scales = _scales(by_element(x, 32), by_element(w, 32)).reshape(-1, 8)
    n = len(scales)
    magnitude = np.where(np.isnan(scales), F(0), np.abs(scales))
    first = np.argmax(magnitude, axis=1)
    largest = np.where(magnitude[np.arange(n), first] > 0, scales[np.arange(n), first], F(0))
    d = np.asarray(-largest / F(32), np.float32)
    steps = np.clip(nearest_int(inverse(d)[:, None] * scales), -32, 31)
    by = inverse(d[:, None] * steps.astype(np.float32))
    codes = _nearest(by[:, :, None] * x.reshape(n, 8, 32))
    parts = [half_bytes(d), *pack_scales(steps + 32), pack_halves(codes).reshape(n, 128)]
    return np.concatenate(parts, axis=1).reshape(len(x), -1)


def pack_scales(steps: Ints) -> tuple[Bytes, Bytes]:
    """Six-bit numbers [n, 8] -> (high bits [n, 2], low nibbles [n, 4])."""
    high = (steps >> 4 << 2 * np.arange(8)).sum(axis=1).astype("<u2")
    low = steps & 15
    return high[:, None].view(np.uint8), (low[:, ::2] | low[:, 1::2] << 4).astype(np.uint8)


def unpack_scales(high: Bytes, low: Bytes) -> npt.NDArray[np.int32]:
    """The inverse of `pack_scales`."""
    bits = np.ascontiguousarray(high).view("<u2").astype(np.int32) >> 2 * np.arange(8, dtype=np.int32) & 3
    nibbles = np.stack([low & 15, low >> 4], axis=2).reshape(-1, 8)
    return nibbles.astype(np.int32) | bits << 4


def _iq4_xs_dequantize(data: Bytes) -> Floats:
    blocks = data.reshape(-1, 136)
    steps = unpack_scales(blocks[:, 2:4], blocks[:, 4:8]) - 32
    scales = bytes_half(blocks[:, :2])[:, None] * steps.astype(np.float32)
    codes = unpack_halves(blocks[:, 8:].reshape(-1, 8, 16))
    return (scales[:, :, None] * VALUES[codes]).reshape(len(data), -1)


CODECS = {
    "IQ4_NL": Codec(_iq4_nl_quantize, _iq4_nl_dequantize),
    "IQ4_XS": Codec(_iq4_xs_quantize, _iq4_xs_dequantize),
}
