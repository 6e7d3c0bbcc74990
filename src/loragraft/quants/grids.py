"""Types as grids: a weight is scale * level + offset, scale and offset belonging to a sub-block of 16 or 32 weights.

That is what rounding with feedback (`quants.feedback`) moves about in: levels, and the numbers of scales and offsets. A
scale's number is, for types that store it as a half float, that float's bits taken as sign and magnitude, so that
neighbouring numbers are neighbouring floats; else it indexes a table of what multiplies the super-block's unit.
Blocks go apart into these parts and back without loss.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from loragraft.arrays import Bytes, Floats, Ints
from loragraft.quants import iq4, kquants, legacy
from loragraft.quants.arith import F, from_half
from loragraft.quants.fp4 import E2M1_DOUBLED, E8M0_HALVED, UE4M3_HALVED, pack_halves, unpack_halves

Levels = npt.NDArray[np.int8]


@dataclass(frozen=True)
class Numbers:
    """What a scale's number may be: `low` to `high`; `table`: what each multiplies the unit by, float32 [high + 1], or
    None if the number is a half float."""

    low: int
    high: int
    table: Floats | None = None

    def values(self, numbers: Ints, units: Floats | None) -> Floats:
        """float32, of the shape of `numbers`."""
        if self.table is None:
            return half_of(numbers)
        return np.asarray(self.table[numbers] * (F(1) if units is None else units), np.float32)


HALVES = Numbers(-0x7BFF, 0x7BFF)


@dataclass
class Parts:
    """Rows of a type, taken apart: `levels` int8 [rows, cols]; `scales` and `offsets` int32 [rows, sub-blocks]; their
    units float32 [rows, super-blocks]."""

    levels: Levels
    scales: Ints
    offsets: Ints | None = None
    units: Floats | None = None
    offset_units: Floats | None = None


class Grid(ABC):
    """The grid of a type. `sub`: weights of a sub-block; `subs`: sub-blocks with one unit; `levels`: ascending,
    float32; `uniform`: whether these are all whole numbers from the first to the last."""

    sub: int
    subs: int = 1
    levels: Floats
    scales: Numbers = HALVES
    offsets: Numbers | None = None
    """The offset is minus this number's value where it has a table, else the half float itself."""

    @property
    def uniform(self) -> bool:
        return bool(len(self.levels) == self.levels[-1] - self.levels[0] + 1)

    @abstractmethod
    def split(self, data: Bytes) -> Parts:
        """Rows uint8 [rows, row_bytes] -> parts."""

    @abstractmethod
    def join(self, parts: Parts) -> Bytes:
        """The inverse of `split`."""

    def spread(self, units: Floats | None) -> Floats | None:
        """Units of super-blocks [rows, super-blocks] -> of sub-blocks [rows, sub-blocks]."""
        return None if units is None else np.repeat(units, self.subs, axis=1)

    def values(self, parts: Parts) -> Floats:
        """The weights, float32 [rows, cols]: what the type's decoder makes of them."""
        rows, subs = parts.scales.shape
        scale = self.scales.values(parts.scales, self.spread(parts.units))
        x = scale[:, :, None] * parts.levels.reshape(rows, subs, self.sub).astype(np.float32)
        if self.offsets is not None:
            assert parts.offsets is not None
            offset = self.offsets.values(parts.offsets, self.spread(parts.offset_units))
            x = x + (offset if self.offsets.table is None else -offset)[:, :, None]
        return x.reshape(rows, -1)


def half_of(numbers: Ints) -> Floats:
    """The half floats whose bits, taken as sign and magnitude, are `numbers`; float32."""
    bits = np.where(numbers < 0, 0x8000 | -numbers, numbers)
    return from_half(bits.astype(np.uint16))


def _half_numbers(data: Bytes) -> Ints:
    """uint8 [..., 2] -> int32 [...], the inverse of `half_of` for bytes."""
    bits = np.ascontiguousarray(data).view("<u2")[..., 0].astype(np.int32)
    return np.where(bits & 0x8000, -(bits & 0x7FFF), bits).astype(np.int32)


def _half_bytes(numbers: Ints) -> Bytes:
    bits = np.where(numbers < 0, 0x8000 | -numbers, numbers)
    return bits.astype("<u2")[..., None].view(np.uint8)


def _unit_bytes(units: Floats) -> Bytes:
    return np.ascontiguousarray(units, np.float32).astype("<f2")[..., None].view(np.uint8)


def _units(data: Bytes, rows: int) -> Floats:
    return from_half(np.ascontiguousarray(data).view("<u2")[..., 0].astype(np.uint16)).reshape(rows, -1)


def _whole(low: int, high: int) -> Floats:
    return np.arange(low, high + 1, dtype=np.float32)


def _steps(low: int, high: int) -> Numbers:
    """Whole multiples of the unit, kept as numbers from 0."""
    return Numbers(0, high - low, _whole(low, high))


def _rows(parts: list[Any], rows: int) -> Bytes:
    return np.concatenate(parts, axis=-1).reshape(rows, -1)


class _Legacy(Grid):
    """Q4_0 to Q5_1: blocks of 32, a half scale (and offset); `fifth`: five bits a code, the fifth apart."""

    sub = 32

    def __init__(self, *, fifth: bool, affine: bool) -> None:
        count = 32 if fifth else 16
        self._zero = 0 if affine else count // 2
        self._fifth, self._head = fifth, 4 if affine else 2
        self.levels = _whole(-self._zero, count - 1 - self._zero)
        self.offsets = HALVES if affine else None
        self._bytes = self._head + (4 if fifth else 0) + 16

    def split(self, data: Bytes) -> Parts:
        b = data.reshape(-1, self._bytes)
        codes = legacy.unpack_nibbles(b[:, -16:])
        if self._fifth:
            codes = codes | legacy.unpack_fifth_bits(b[:, self._head : self._head + 4])
        rows = len(data)
        offsets = _half_numbers(b[:, 2:4]).reshape(rows, -1) if self.offsets else None
        levels = (codes - self._zero).astype(np.int8).reshape(rows, -1)
        return Parts(levels, _half_numbers(b[:, :2]).reshape(rows, -1), offsets)

    def join(self, parts: Parts) -> Bytes:
        codes = np.ascontiguousarray((parts.levels.reshape(-1, 32).astype(np.int32) + self._zero).T)
        head = [_half_bytes(parts.scales.reshape(-1))]
        if parts.offsets is not None:
            head.append(_half_bytes(parts.offsets.reshape(-1)))
        if self._fifth:
            head.append(legacy.pack_fifth_bits(codes))
        return _rows([*head, legacy.pack_nibbles(codes & 15)], len(parts.levels))


class _Q8_0(Grid):
    sub, levels = 32, _whole(-127, 127)

    def split(self, data: Bytes) -> Parts:
        b, rows = data.reshape(-1, 34), len(data)
        return Parts(b[:, 2:].view(np.int8).reshape(rows, -1), _half_numbers(b[:, :2]).reshape(rows, -1))

    def join(self, parts: Parts) -> Bytes:
        codes = parts.levels.reshape(-1, 32).view(np.uint8)
        return _rows([_half_bytes(parts.scales.reshape(-1)), codes], len(parts.levels))


class _Q2K(Grid):
    sub, subs, levels = 16, 16, _whole(0, 3)
    scales = offsets = _steps(0, 15)

    def split(self, data: Bytes) -> Parts:
        b, rows = data.reshape(-1, 84), len(data)
        levels = kquants.unpack_crumbs(b[:, 16:80]).view(np.int8).reshape(rows, -1)
        scales, offsets = (b[:, :16] & 15).astype(np.int32), (b[:, :16] >> 4).astype(np.int32)
        units, offset_units = _units(b[:, 80:82], rows), _units(b[:, 82:84], rows)
        return Parts(levels, scales.reshape(rows, -1), offsets.reshape(rows, -1), units, offset_units)

    def join(self, parts: Parts) -> Bytes:
        assert parts.offsets is not None
        assert parts.units is not None
        assert parts.offset_units is not None
        packed = (parts.scales | parts.offsets << 4).astype(np.uint8).reshape(-1, 16)
        crumbs = kquants.pack_crumbs(parts.levels.view(np.uint8).reshape(-1, 256))
        units = [_unit_bytes(parts.units.reshape(-1)), _unit_bytes(parts.offset_units.reshape(-1))]
        return _rows([packed, crumbs, *units], len(parts.levels))


class _Q3K(Grid):
    sub, subs, levels = 16, 16, _whole(-4, 3)
    scales = _steps(-32, 31)

    def split(self, data: Bytes) -> Parts:
        b, rows = data.reshape(-1, 110), len(data)
        codes = kquants.unpack_crumbs(b[:, 32:96]) | (kquants.unpack_high_bits(b[:, :32]) << np.uint8(2))
        scales = kquants.unpack_q3_scales(b[:, 96:108]).astype(np.int32)
        levels = (codes.view(np.int8) - np.int8(4)).reshape(rows, -1)
        return Parts(levels, scales.reshape(rows, -1), units=_units(b[:, 108:110], rows))

    def join(self, parts: Parts) -> Bytes:
        assert parts.units is not None
        codes = (parts.levels + np.int8(4)).view(np.uint8).reshape(-1, 256)
        scales = kquants.pack_q3_scales(parts.scales.reshape(-1, 16).T)
        fields = [
            kquants.pack_high_bits(codes >> np.uint8(2)),
            kquants.pack_crumbs(codes & np.uint8(3)),
            scales,
        ]
        return _rows([*fields, _unit_bytes(parts.units.reshape(-1))], len(parts.levels))


class _Q45K(Grid):
    """Q4_K and Q5_K."""

    sub, subs = 32, 8
    scales = offsets = _steps(0, 63)

    def __init__(self, *, fifth: bool) -> None:
        self._fifth = fifth
        self._bytes = 176 if fifth else 144
        self.levels = _whole(0, 31 if fifth else 15)

    def split(self, data: Bytes) -> Parts:
        b, rows = data.reshape(-1, self._bytes), len(data)
        scales, minima = kquants.unpack_scales_mins(b[:, 4:16])
        codes = kquants.unpack_nibbles(b[:, -128:])
        if self._fifth:
            codes = codes | kquants.unpack_high_bits(b[:, 16:48]) << np.uint8(4)
        return Parts(
            codes.view(np.int8).reshape(rows, -1),
            scales.astype(np.int32).reshape(rows, -1),
            minima.astype(np.int32).reshape(rows, -1),
            _units(b[:, :2], rows),
            _units(b[:, 2:4], rows),
        )

    def join(self, parts: Parts) -> Bytes:
        assert parts.offsets is not None
        assert parts.units is not None
        assert parts.offset_units is not None
        codes = parts.levels.view(np.uint8).reshape(-1, 256)
        packed = kquants.pack_scales_mins(parts.scales.reshape(-1, 8).T, parts.offsets.reshape(-1, 8).T)
        head = [_unit_bytes(parts.units.reshape(-1)), _unit_bytes(parts.offset_units.reshape(-1)), packed]
        if self._fifth:
            head.append(kquants.pack_high_bits(codes >> np.uint8(4)))
        return _rows([*head, kquants.pack_nibbles(codes & np.uint8(15))], len(parts.levels))


class _Q6K(Grid):
    sub, subs, levels = 16, 16, _whole(-32, 31)
    scales = _steps(-128, 127)

    def split(self, data: Bytes) -> Parts:
        b, rows = data.reshape(-1, 210), len(data)
        levels = (kquants.unpack_q6_codes(b[:, :192]).view(np.int8) - np.int8(32)).reshape(rows, -1)
        scales = b[:, 192:208].view(np.int8).astype(np.int32) + 128
        return Parts(levels, scales.reshape(rows, -1), units=_units(b[:, 208:210], rows))

    def join(self, parts: Parts) -> Bytes:
        assert parts.units is not None
        codes = (parts.levels + np.int8(32)).view(np.uint8).reshape(-1, 256)
        scales = (parts.scales - 128).astype(np.int8).view(np.uint8).reshape(-1, 16)
        fields = [kquants.pack_q6_codes(codes), scales, _unit_bytes(parts.units.reshape(-1))]
        return _rows(fields, len(parts.levels))


class _IQ4NL(Grid):
    sub, levels = 32, iq4.VALUES

    def split(self, data: Bytes) -> Parts:
        b, rows = data.reshape(-1, 18), len(data)
        levels = iq4.VALUES.astype(np.int8)[unpack_halves(b[:, 2:])]
        return Parts(levels.reshape(rows, -1), _half_numbers(b[:, :2]).reshape(rows, -1))

    def join(self, parts: Parts) -> Bytes:
        codes = pack_halves(_index(parts.levels, iq4.VALUES).reshape(-1, 32))
        return _rows([_half_bytes(parts.scales.reshape(-1)), codes], len(parts.levels))


class _IQ4XS(Grid):
    sub, subs, levels = 32, 8, iq4.VALUES
    scales = _steps(-32, 31)

    def split(self, data: Bytes) -> Parts:
        b, rows = data.reshape(-1, 136), len(data)
        levels = iq4.VALUES.astype(np.int8)[unpack_halves(b[:, 8:].reshape(-1, 8, 16))]
        scales = iq4.unpack_scales(b[:, 2:4], b[:, 4:8])
        return Parts(levels.reshape(rows, -1), scales.reshape(rows, -1), units=_units(b[:, :2], rows))

    def join(self, parts: Parts) -> Bytes:
        assert parts.units is not None
        codes = pack_halves(_index(parts.levels, iq4.VALUES).reshape(-1, 8, 32)).reshape(-1, 128)
        scales = iq4.pack_scales(parts.scales.reshape(-1, 8))
        return _rows([_unit_bytes(parts.units.reshape(-1)), *scales, codes], len(parts.levels))


_E2M1 = np.array(sorted({float(v) for v in E2M1_DOUBLED}), np.float32)
_E2M1_CODES = np.array([list(E2M1_DOUBLED).index(v) for v in _E2M1], np.uint8)


class _FP4(Grid):
    """MXFP4 and, in units of its per-tensor scale, NVFP4."""

    levels = _E2M1

    def __init__(self, sub: int, per_block: int, scales: Numbers) -> None:
        self.sub, self._per_block, self.scales = sub, per_block, scales
        self._bytes = per_block * (1 + sub // 2)

    def split(self, data: Bytes) -> Parts:
        b, rows = data.reshape(-1, self._bytes), len(data)
        codes = unpack_halves(b[:, self._per_block :].reshape(-1, self.sub // 2))
        levels = E2M1_DOUBLED.astype(np.int8)[codes].reshape(rows, -1)
        return Parts(levels, b[:, : self._per_block].astype(np.int32).reshape(rows, -1))

    def join(self, parts: Parts) -> Bytes:
        codes = _E2M1_CODES[_index(parts.levels, _E2M1)].reshape(-1, self.sub)
        packed = pack_halves(codes).reshape(-1, self._per_block * self.sub // 2)
        scales = parts.scales.astype(np.uint8).reshape(-1, self._per_block)
        return _rows([scales, packed], len(parts.levels))


def _index(levels: Levels, values: Floats) -> Bytes:
    """Which of the ascending `values` each level is."""
    table = np.zeros(256, np.uint8)
    table[values.astype(np.int8).view(np.uint8)] = np.arange(len(values))
    return table[levels.view(np.uint8)]


GRIDS: dict[str, Grid] = {
    "Q4_0": _Legacy(fifth=False, affine=False),
    "Q4_1": _Legacy(fifth=False, affine=True),
    "Q5_0": _Legacy(fifth=True, affine=False),
    "Q5_1": _Legacy(fifth=True, affine=True),
    "Q8_0": _Q8_0(),
    "Q2_K": _Q2K(),
    "Q3_K": _Q3K(),
    "Q4_K": _Q45K(fifth=False),
    "Q5_K": _Q45K(fifth=True),
    "Q6_K": _Q6K(),
    "IQ4_NL": _IQ4NL(),
    "IQ4_XS": _IQ4XS(),
    "MXFP4": _FP4(32, 1, Numbers(0, 254, E8M0_HALVED[:255])),
    "NVFP4": _FP4(16, 4, Numbers(0, 0x7E, UE4M3_HALVED[:0x7F])),
}
"""By type. The other types have no grid of this kind: lattices, ternary codes, floats."""
