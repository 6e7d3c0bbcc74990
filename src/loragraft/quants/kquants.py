"""The K types: super-blocks of 256 weights in 8 or 16 sub-blocks, whose scales (and minima) are quantized in turn.

All go the same way: search a scale for every sub-block (`quants.search`), quantize the scales against the
super-block's, then round every weight again with the scale as it will be read back. A sub-block whose stored scale is
zero keeps the codes of the search.

Source of the algorithms: quantize_row_q*_K_ref, quantize_row_q*_K_impl and dequantize_row_q*_K of ggml-quants.c.
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
    nearest_int,
    running_sum,
    through_half,
)
from loragraft.quants.codec import Codec

SUPER = 256
# Typed shifts and masks: uint8 with a Python int is no longer uint8 to the type checker.
_TWO, _FOUR, _SIX = np.uint8(2), np.uint8(4), np.uint8(6)
_LOW4 = np.uint8(15)


# ---- weights of the weights


def _own_weights(x: Floats) -> Floats:
    """Mean-square magnitude of the sub-block plus the weight's own: [n, blocks]."""
    mean: Floats = np.sqrt(running_sum(x * x) / F(len(x)))
    return mean + np.abs(x)


def _spread(importance: Floats, n: int, rows: int) -> Floats:
    """Importance [cols] -> [n, blocks], the same for every row."""
    return np.tile(by_element(importance[None], n), (1, rows))


def _weighted(rows: Floats, n: int, importance: Floats, factor: float) -> Floats:
    """importance * sqrt(factor * mean square of the super-block + x^2): [n, blocks]."""
    x = by_element(rows, n)
    sum_x2 = running_sum(np.square(by_element(rows, SUPER)))
    sigma2 = np.repeat(F(factor) * sum_x2 / F(SUPER), SUPER // n)
    root: Floats = np.sqrt(sigma2 + x * x)
    return _spread(importance, n, len(rows)) * root


# ---- scales of a super-block. Sub-block values are [blocks]; `_sub` lays them out as [sub-blocks, super-blocks].


def _sub(values: Floats, n: int) -> Floats:
    return np.ascontiguousarray(values.reshape(-1, SUPER // n).T)


def _plain_scales(values: Floats, top: int) -> tuple[Floats, Ints]:
    """Super-block scale and codes 0 .. 255 of values that are not negative, against the largest."""
    high = np.zeros_like(values[0])
    for row in values:
        high = np.where(row > high, row, high)
    inverse = np.where(high > 0, F(top) / high, F(0))
    return np.where(high > 0, high / F(top), F(0)), nearest_int(inverse * values) & 255


def _requantize(x: Floats, codes: Ints, scale: Floats, offset: Floats | None, low: int, high: int) -> Ints:
    """Codes of `x` [n, blocks] for the stored scale and offset [blocks]; where the scale is zero, `codes` stay."""
    shifted = x if offset is None else x + offset
    fresh = np.clip(nearest_int(shifted / scale), low, high) - np.int32(low)
    return np.where(scale != 0, fresh, codes)


def _per_super(codes: Ints) -> Bytes:
    """[n, blocks] -> uint8 [super-blocks, 256] in the weights' order."""
    return np.ascontiguousarray(codes.T).astype(np.uint8).reshape(-1, SUPER)


def _flat(values: Floats) -> Floats:
    """[sub-blocks, super-blocks] -> [blocks], the inverse of `_sub`."""
    return np.ascontiguousarray(values.T).reshape(-1)


# ---- bit layouts


def pack_crumbs(codes: Bytes) -> Bytes:
    """2-bit codes [super, 256] -> [super, 64]: of each 128 weights, byte l holds weights l, l + 32, l + 64, l + 96."""
    c = codes.reshape(-1, 2, 4, 32)
    packed: Bytes = c[:, :, 0] | (c[:, :, 1] << _TWO) | (c[:, :, 2] << _FOUR) | (c[:, :, 3] << _SIX)
    return packed.reshape(-1, 64)


def unpack_crumbs(qs: Bytes) -> Bytes:
    shifts = np.array([0, 2, 4, 6], dtype=np.uint8)[None, None, :, None]
    crumbs: Bytes = (qs.reshape(-1, 2, 1, 32) >> shifts) & np.uint8(3)
    return crumbs.reshape(-1, SUPER)


def pack_nibbles(codes: Bytes) -> Bytes:
    """4-bit codes [super, 256] -> [super, 128]: of each 64 weights, byte l holds weights l and l + 32."""
    c = codes.reshape(-1, 4, 2, 32)
    packed: Bytes = c[:, :, 0] | (c[:, :, 1] << _FOUR)
    return packed.reshape(-1, 128)


def unpack_nibbles(qs: Bytes) -> Bytes:
    q = qs.reshape(-1, 4, 1, 32)
    return np.concatenate([q & 15, q >> 4], axis=2).reshape(-1, SUPER)


def pack_high_bits(codes: Bytes) -> Bytes:
    """Bits [super, 256] (0 or 1) -> [super, 32]: bit k of byte l belongs to weight 32 k + l."""
    return np.packbits(codes.reshape(-1, 8, 32), axis=1, bitorder="little").reshape(-1, 32)


def unpack_high_bits(bits: Bytes) -> Bytes:
    return np.unpackbits(bits.reshape(-1, 1, 32), axis=1, bitorder="little").reshape(-1, SUPER)


def pack_scales_mins(scales: Ints, minima: Ints) -> Bytes:
    """Two sets of 6-bit values [8, super] -> [super, 12]: four of each plain, the rest in nibbles and top bits."""
    s, m = scales.astype(np.uint8), minima.astype(np.uint8)
    return np.concatenate(
        [
            s[:4] | ((s[4:] >> 4) << 6),
            m[:4] | ((m[4:] >> 4) << 6),
            (s[4:] & 15) | ((m[4:] & 15) << 4),
        ]
    ).T


def unpack_scales_mins(packed: Bytes) -> tuple[Bytes, Bytes]:
    """[super, 12] -> scales and minima, each [super, 8]."""
    a, b, c = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([a & 63, (c & 15) | ((a >> 6) << 4)], axis=1)
    minima = np.concatenate([b & 63, (c >> 4) | ((b >> 6) << 4)], axis=1)
    return scales, minima


def pack_q3_scales(scales: Ints) -> Bytes:
    """6-bit values [16, super] -> [super, 12]: the low nibbles of two in a byte, then the top bits of four in one."""
    s = scales.astype(np.uint8)
    nibbles = s[:8] & _LOW4 | ((s[8:] & _LOW4) << _FOUR)
    bits = s >> _FOUR
    crumbs = bits[0:4] | (bits[4:8] << _TWO) | (bits[8:12] << _FOUR) | (bits[12:16] << _SIX)
    return np.concatenate([nibbles, crumbs]).T


def unpack_q3_scales(packed: Bytes) -> Bytes:
    """The inverse of `pack_q3_scales`: [super, 12] -> [super, 16]."""
    nibbles = np.concatenate([packed[:, :8] & _LOW4, packed[:, :8] >> _FOUR], axis=1)
    shifts = np.array([0, 2, 4, 6], dtype=np.uint8)[None, :, None]
    tops: Bytes = ((packed[:, None, 8:] >> shifts) & np.uint8(3)).reshape(-1, 16)
    return np.asarray(nibbles | (tops << _FOUR), np.uint8)


def pack_q6_codes(codes: Bytes) -> Bytes:
    """6-bit codes [super, 256] -> [super, 192]: low nibbles (of each 128 weights, byte l holds weights l and l + 64),
    then the top bits as `pack_crumbs`."""
    c = codes.reshape(-1, 2, 4, 32)
    low = (c[:, :, :2] & _LOW4) | ((c[:, :, 2:] & _LOW4) << _FOUR)
    return np.concatenate([low.reshape(-1, 128), pack_crumbs(codes >> _FOUR)], axis=1)


def unpack_q6_codes(packed: Bytes) -> Bytes:
    """The inverse of `pack_q6_codes`."""
    low = packed[:, :128].reshape(-1, 2, 2, 32)
    codes = np.concatenate([low & _LOW4, low >> _FOUR], axis=2).reshape(-1, SUPER)
    return np.asarray(codes | (unpack_crumbs(packed[:, 128:192]) << _FOUR), np.uint8)


def _affine_back(codes: Bytes, d: Floats, dmin: Floats, scales: Bytes, minima: Bytes) -> Floats:
    """(d * scale) * code - (dmin * min), the sub-blocks' factors first, as the reference multiplies."""
    dl = (d[:, None] * scales.astype(np.float32))[:, :, None]
    ml = (dmin[:, None] * minima.astype(np.float32))[:, :, None]
    x: Floats = dl * codes.reshape(*scales.shape, -1).astype(np.float32) - ml
    return x


# ---- Q2_K


def _q2_k_quantize(rows: Floats, importance: Floats | None) -> Bytes:
    x = by_element(rows, 16)
    if importance is None:
        scale, low, codes = search.affine(x, np.abs(x), 3, -0.5, 0.1, 15, absolute=True)
        d, ls = _plain_scales(_sub(scale, 16), 15)
        dmin, lm = _plain_scales(_sub(low, 16), 15)
    else:
        w = _weighted(rows, 16, importance, 1)
        scale, low, codes = search.affine(x, w, 3, -0.9, 0.05, 36)
        sums = _sub(running_sum(w), 16)
        d, ls = search.positive(_sub(scale, 16), sums, 15)
        dmin, lm = search.positive(_sub(low, 16), sums, 15)
    packed = (ls | (lm << 4)) & 255
    dl = _flat(through_half(d) * (packed & 15).astype(np.float32))
    ml = _flat(through_half(dmin) * (packed >> 4).astype(np.float32))
    codes = _requantize(x, codes, dl, ml, 0, 3)
    parts = [packed.astype(np.uint8).T, pack_crumbs(_per_super(codes)), half_bytes(d), half_bytes(dmin)]
    return block_rows(parts, len(rows))


def _q2_k_dequantize(data: Bytes) -> Floats:
    b = data.reshape(-1, 84)
    scales, codes = b[:, :16], unpack_crumbs(b[:, 16:80])
    x = _affine_back(codes, bytes_half(b[:, 80:82]), bytes_half(b[:, 82:84]), scales & _LOW4, scales >> _FOUR)
    return x.reshape(len(data), -1)


# ---- Q3_K


def _q3_k_quantize(rows: Floats, importance: Floats | None) -> Bytes:
    x = by_element(rows, 16)
    if importance is None:
        scale, codes = search.sweeps(x, 4)
        scales = _sub(scale, 16)
        top = search.largest(scales)
        inverse = F(-32) / top
        ls = np.clip(nearest_int(inverse * scales).astype(np.int8), -32, 31).astype(np.int32) + 32
        ls = np.where(top != 0, ls, np.int32(0))
        d = np.where(top != 0, F(1) / inverse, F(0))
    else:
        w = _weighted(rows, 16, importance, 2)
        scale, codes = search.symmetric(x, w, 4)
        d, ls = search.symmetric(_sub(scale, 16), _sub(running_sum(w), 16), 32)
    dl = _flat(through_half(d) * (ls - 32).astype(np.float32))
    codes = _requantize(x, codes, dl, None, -4, 3)
    all_codes = _per_super(codes)
    parts = [
        pack_high_bits(all_codes >> _TWO),
        pack_crumbs(all_codes & np.uint8(3)),
        pack_q3_scales(ls),
        half_bytes(d),
    ]
    return block_rows(parts, len(rows))


def _q3_k_dequantize(data: Bytes) -> Floats:
    b = data.reshape(-1, 110)
    scales = unpack_q3_scales(b[:, 96:108]).astype(np.float32) - F(32)
    codes = unpack_crumbs(b[:, 32:96]) | (unpack_high_bits(b[:, :32]) << 2)
    dl = bytes_half(b[:, 108:110])[:, None] * scales
    x: Floats = dl[:, :, None] * (codes.reshape(-1, 16, 16).astype(np.float32) - F(4))
    return x.reshape(len(data), -1)


# ---- Q4_K, Q5_K


def _affine_super(rows: Floats, importance: Floats | None, top: int) -> tuple[Floats, Floats, Bytes, Bytes]:
    """d, dmin [super], packed scales [super, 12] and codes [super, 256] of the types with 8 sub-blocks."""
    x = by_element(rows, 32)
    if importance is None:
        first, tries = (-1.0, 20) if top == 15 else (-0.5, 15)
        scale, low, codes = search.affine(x, _own_weights(x), top, first, 0.1, tries)
        d, ls = _plain_scales(_sub(scale, 32), 63)
        dmin, lm = _plain_scales(_sub(low, 32), 63)
        ls, lm = np.minimum(ls, 63), np.minimum(lm, 63)
    else:
        w = _weighted(rows, 32, importance, 2)
        scale, low, codes = search.affine(x, w, top, -0.9, 0.05, 36)
        sums = _sub(running_sum(w), 32)
        d, ls = search.positive(_sub(scale, 32), sums, 63)
        dmin, lm = search.positive(_sub(low, 32), sums, 63)
        if top == 31:
            ls, lm = np.minimum(ls, 63), np.minimum(lm, 63)
    packed = pack_scales_mins(ls, lm)
    scales, minima = unpack_scales_mins(packed)
    dl = (through_half(d)[:, None] * scales.astype(np.float32)).reshape(-1)
    ml = (through_half(dmin)[:, None] * minima.astype(np.float32)).reshape(-1)
    return d, dmin, packed, _per_super(_requantize(x, codes, dl, ml, 0, top))


def _q4_k_quantize(rows: Floats, importance: Floats | None) -> Bytes:
    d, dmin, packed, codes = _affine_super(rows, importance, 15)
    return block_rows([half_bytes(d), half_bytes(dmin), packed, pack_nibbles(codes)], len(rows))


def _q4_k_dequantize(data: Bytes) -> Floats:
    b = data.reshape(-1, 144)
    scales, minima = unpack_scales_mins(b[:, 4:16])
    codes = unpack_nibbles(b[:, 16:])
    return _affine_back(codes, bytes_half(b[:, :2]), bytes_half(b[:, 2:4]), scales, minima).reshape(
        len(data), -1
    )


def _q5_k_quantize(rows: Floats, importance: Floats | None) -> Bytes:
    d, dmin, packed, codes = _affine_super(rows, importance, 31)
    parts = [
        half_bytes(d),
        half_bytes(dmin),
        packed,
        pack_high_bits(codes >> _FOUR),
        pack_nibbles(codes & _LOW4),
    ]
    return block_rows(parts, len(rows))


def _q5_k_dequantize(data: Bytes) -> Floats:
    b = data.reshape(-1, 176)
    scales, minima = unpack_scales_mins(b[:, 4:16])
    codes = unpack_nibbles(b[:, 48:]) | (unpack_high_bits(b[:, 16:48]) << _FOUR)
    return _affine_back(codes, bytes_half(b[:, :2]), bytes_half(b[:, 2:4]), scales, minima).reshape(
        len(data), -1
    )


# ---- Q6_K


def _q6_k_quantize(rows: Floats, importance: Floats | None) -> Bytes:
    x = by_element(rows, 16)
    w = x * x if importance is None else _spread(importance, 16, len(rows))
    scale, codes = search.symmetric(x, w, 32)
    scales = _sub(scale, 16)
    top = search.largest(scales)
    inverse = F(-128) / top
    d = F(1) / inverse
    ls = np.minimum(127, nearest_int(inverse * scales)).astype(np.int8)
    codes = _requantize(x, codes, _flat(through_half(d) * ls.astype(np.float32)), None, -32, 31)
    blocks = np.concatenate([pack_q6_codes(_per_super(codes)), ls.T.view(np.uint8), half_bytes(d)], axis=1)
    return np.where((np.abs(top) < search.TINY)[:, None], np.uint8(0), blocks).reshape(len(rows), -1)


def _q6_k_dequantize(data: Bytes) -> Floats:
    b = data.reshape(-1, 210)
    codes = unpack_q6_codes(b[:, :192])
    dl = bytes_half(b[:, 208:210])[:, None] * b[:, 192:208].view(np.int8).astype(np.float32)
    x: Floats = dl[:, :, None] * (codes.reshape(-1, 16, 16).astype(np.float32) - F(32))
    return x.reshape(len(data), -1)


CODECS = {
    "Q2_K": Codec(_q2_k_quantize, _q2_k_dequantize),
    "Q3_K": Codec(_q3_k_quantize, _q3_k_dequantize),
    "Q4_K": Codec(_q4_k_quantize, _q4_k_dequantize),
    "Q5_K": Codec(_q5_k_quantize, _q5_k_dequantize),
    "Q6_K": Codec(_q6_k_quantize, _q6_k_dequantize),
}
