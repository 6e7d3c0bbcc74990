"""TQ1_0 and TQ2_0: weights of -1, 0 or 1 times one scale per 256 (BitNet b1.58, TriLMs).

Source: quantize_row_tq*_0_ref and dequantize_row_tq*_0 in ggml-quants.c. An importance matrix changes nothing.
"""

from __future__ import annotations

import numpy as np

from loragraft.arrays import Bytes, Floats
from loragraft.quants.arith import F, bytes_half, half_bytes, round_away
from loragraft.quants.codec import Codec


def _digits(x: Floats) -> tuple[Bytes, Bytes]:
    """Rows -> (codes 0, 1, 2 [blocks, 256], the scale's two bytes [blocks, 2])."""
    blocks = x.reshape(-1, 256)
    d = np.abs(blocks).max(axis=1, keepdims=True)
    scaled = blocks * np.where(d != 0, F(1) / d, F(0))
    # lroundf gives 0 in its low 32 bits for what no integer can hold (1 / d overflows for the smallest d).
    digits = np.where(np.isfinite(scaled), round_away(scaled) + 1, 1)
    return digits.astype(np.uint8), half_bytes(d[:, 0])


# ---- TQ1_0: five digits in a byte, as the fraction digits / 3^5 of 256, rounded up

_POWERS = np.array([81, 27, 9, 3, 1], np.uint16)
_GROUPS = ((0, 32, 5), (160, 16, 5), (240, 4, 4))
"""Where the digits of a block lie: (first weight, bytes, digits in a byte); digit n of byte m is weight
first + n * bytes + m."""


def _tq1_0_quantize(x: Floats, importance: Floats | None) -> Bytes:
    digits, scale = _digits(x)
    parts = []
    for first, n_bytes, n_digits in _GROUPS:
        group = digits[:, first : first + n_bytes * n_digits].reshape(-1, n_digits, n_bytes).astype(np.uint16)
        number = (group * _POWERS[:n_digits, None]).sum(axis=1, dtype=np.uint16)
        parts.append(((number * np.uint32(256) + 242) // 243).astype(np.uint8))
    return np.concatenate([*parts, scale], axis=1).reshape(len(x), -1)


def _tq1_0_dequantize(data: Bytes) -> Floats:
    blocks = data.reshape(-1, 54)
    parts, start = [], 0
    for _, n_bytes, n_digits in _GROUPS:
        fraction = (
            blocks[:, None, start : start + n_bytes] * (3 ** np.arange(n_digits, dtype=np.uint8))[:, None]
        )
        parts.append((fraction.astype(np.uint16) * 3 >> 8).reshape(len(blocks), -1))
        start += n_bytes
    digits = np.concatenate(parts, axis=1).astype(np.float32) - 1
    return (digits * bytes_half(blocks[:, 52:])[:, None]).reshape(len(data), -1)


# ---- TQ2_0: four digits in a byte, 32 weights apart


def _tq2_0_quantize(x: Floats, importance: Floats | None) -> Bytes:
    digits, scale = _digits(x)
    d = digits.reshape(-1, 2, 4, 32)
    packed = d[:, :, 0] | d[:, :, 1] << 2 | d[:, :, 2] << 4 | d[:, :, 3] << 6
    return np.concatenate([packed.reshape(-1, 64), scale], axis=1).reshape(len(x), -1)


def _tq2_0_dequantize(data: Bytes) -> Floats:
    blocks = data.reshape(-1, 66)
    packed = blocks[:, :64].reshape(-1, 2, 1, 32)
    digits = packed >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
    values = digits.reshape(-1, 256).astype(np.float32) - 1
    return (values * bytes_half(blocks[:, 64:])[:, None]).reshape(len(data), -1)


CODECS = {
    "TQ1_0": Codec(_tq1_0_quantize, _tq1_0_dequantize),
    "TQ2_0": Codec(_tq2_0_quantize, _tq2_0_dequantize),
}
