"""float32 arithmetic as the reference's x86-64 build does it, for the NumPy implementations.

Bit-identity needs three things that NumPy does not promise by itself: casts and roundings of values out of range
(C leaves them open, the x86-64 instruction decides), sums taken strictly from left to right, and float32 throughout.
The implementations keep one axis for the blocks and walk the 16 or 32 weights of a block in a Python loop, which
makes every sum sequential.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from loragraft.arrays import Bytes, Floats, Ints

F = np.float32
_MAGIC = F(12582912.0)  # 1.5 * 2^23: adding it leaves the nearest integer in the low mantissa bits
_BELOW_HALF = np.nextafter(F(0.5), F(0.0))
INT_MIN = np.int32(-(2**31))


def nearest_int(v: Floats) -> Ints:
    """Round half to even by adding the magic number; values past +-2^22 wrap as the reference's do."""
    bits = np.asarray(v + _MAGIC, dtype=np.float32).view(np.int32)
    return (bits & np.int32(0x7FFFFF)) - np.int32(0x400000)


def truncate(v: Floats) -> Ints:
    """The C cast `(int) v`: NaN and values out of range give -2^31, as cvttss2si does."""
    inside = np.abs(v) < F(2.0**31)
    return np.where(inside, np.where(inside, v, F(0)).astype(np.int32), INT_MIN)


def round_away(v: Floats) -> Ints:
    """`(int) roundf(v)`: half away from zero. Exact, as 0.5 - 2^-25 never carries a fraction below one half."""
    return truncate(np.trunc(v + np.copysign(_BELOW_HALF, v)))


def to_half(v: Floats) -> npt.NDArray[np.uint16]:
    """IEEE half bits, rounded to nearest even; NaN becomes 0x7E00 with its sign."""
    v = np.asarray(v, dtype=np.float32)
    half = v.astype(np.float16).view(np.uint16)
    sign = (v.view(np.uint32) >> np.uint32(16)).astype(np.uint16) & np.uint16(0x8000)
    return np.where(np.isnan(v), sign | np.uint16(0x7E00), half)


def from_half(bits: npt.NDArray[np.uint16]) -> Floats:
    """float32 of half bits; a signalling NaN comes back quiet."""
    wide = bits.view(np.float16).astype(np.float32)
    quiet = (wide.view(np.uint32) | np.uint32(0x400000)).view(np.float32)
    return np.where(np.isnan(wide), quiet, wide)


def through_half(v: Floats) -> Floats:
    """`v` as it reads back after being stored in half precision."""
    return from_half(to_half(v))


def half_bytes(v: Floats) -> Bytes:
    """`v` [...] stored in half precision, little-endian: uint8 [..., 2]."""
    return to_half(v).astype("<u2")[..., None].view(np.uint8)


def result_bytes(v: Floats) -> Bytes:
    """As `half_bytes`, for numbers that were computed: NaN as x86-64 makes it, negative, on every machine."""
    return half_bytes(np.where(np.isnan(v), np.copysign(F(np.nan), F(-1)), v))


def bytes_half(data: Bytes) -> Floats:
    """The inverse of `half_bytes`: uint8 [..., 2] -> float32 [...]."""
    return from_half(np.ascontiguousarray(data).view("<u2")[..., 0].astype(np.uint16))


def running_sum(terms: Iterable[Floats]) -> Floats:
    """The terms added from left to right, starting at zero."""
    total = None
    for term in terms:
        total = F(0) + term if total is None else total + term
    assert total is not None
    return total


def by_element(x: Floats, n: int) -> Floats:
    """[rows, cols] -> [n, blocks]: element j of every block of `n` weights lies in row j, contiguous."""
    return np.ascontiguousarray(x.reshape(-1, n).T)


def inverse(d: Floats) -> Floats:
    """1 / d, and 0 where d is 0."""
    return np.where(d != 0, F(1) / d, F(0))


def block_rows(parts: Sequence[Bytes], rows: int) -> Bytes:
    """The parts of every block, each uint8 [blocks, bytes], side by side as `rows` rows."""
    return np.concatenate(parts, axis=1).reshape(rows, -1)
