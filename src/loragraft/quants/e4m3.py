"""The 8-bit float E4M3 ("fn": no infinities, 0x7F and 0xFF are NaN): FP8 weights and NVFP4's block scales.

Sign, four exponent bits with bias 7, three mantissa bits; the largest value is 448, the smallest 2^-9.
Source: Micikevicius et al., FP8 Formats for Deep Learning (arXiv:2209.05433), as in torch.float8_e4m3fn.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

MAX = 448.0
NAN = 0x7F


def _values() -> npt.NDArray[np.float32]:
    code = np.arange(128)
    exponent, mantissa = code >> 3, code & 7
    value = np.where(exponent == 0, np.ldexp(mantissa, -9), np.ldexp(8 + mantissa, exponent - 10))
    value[NAN] = np.nan
    return np.concatenate([value, -value]).astype(np.float32)


VALUES = _values()
"""The value of each of the 256 codes."""


def decode(codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Codes of any shape -> float32; exact."""
    return VALUES[codes]


def encode(x: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """float32 of any shape -> codes: to nearest, ties to even; beyond 448 it saturates; NaN stays NaN."""
    x = np.asarray(x, np.float32)
    magnitude = np.minimum(np.abs(x), np.float32(MAX))
    exponent = np.maximum((magnitude.view(np.uint32) >> 23).astype(np.int32) - 127, -6)
    # In units of the last place: 8..16 where normal, below 8 where subnormal; 16 carries into the exponent.
    with np.errstate(invalid="ignore"):
        mantissa = np.rint(np.ldexp(magnitude, 3 - exponent)).astype(np.int32)
    code = np.where(np.isnan(x), NAN, mantissa + 8 * (exponent + 6)) + 128 * np.signbit(x)
    return np.asarray(code, np.uint8)
