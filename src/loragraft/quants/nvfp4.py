"""NVFP4 with a per-tensor scale: the quantizer, and repacking between ModelOpt's layout and GGUF's.

A weight is `scale * E4M3 * E2M1`: a float32 per tensor, eight bits per 16 weights, four bits per weight.

ModelOpt (and compressed-tensors) store the codes as uint8 [..., in/2], the even column in the low nibble, and the
block scales as E4M3 [..., in/16]. GGUF stores blocks of 64 weights in 36 bytes: four scales, then per 16 weights
eight bytes of which byte j holds weight j in its low nibble and weight 8 + j in the high one.

The quantizer gives every block the E4M3 scale of least squared error. Cook et al., Four Over Six
(arXiv:2512.02010), choose between two scales by the error; here all that could win are tried.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from loragraft.arrays import Floats
from loragraft.errors import FormatError, QuantizeError
from loragraft.quants import e4m3
from loragraft.quants.arith import F
from loragraft.quants.fp4 import E2M1_DOUBLED, UE4M3_HALVED, pack_halves, unpack_halves
from loragraft.quants.reference import check_input
from loragraft.quants.types import BY_NAME

U8 = npt.NDArray[np.uint8]
U64 = npt.NDArray[Any]

NVFP4 = BY_NAME["NVFP4"]
BLOCK, BLOCK_BYTES = NVFP4.block, NVFP4.bytes
_GROUP = 16


def tensor_scale(amax: float) -> float:
    """The per-tensor scale for weights of at most `amax`: the largest block gets scale 448 and code 6.

    ModelOpt's rule, amax / (448 * 6) in float32. Tensors whose products are added or stored together (q/k/v,
    gate/up) share a scale: pass the largest of their magnitudes. All-zero weights get scale 1.
    """
    scale = np.float32(amax) / np.float32(e4m3.MAX * 6)
    return float(scale) if scale > 0 else 1.0


# ---- the quantizer

_UP = 8
"""How many scales above the first to try. Twice a scale that does not clip can do nothing better: within its range
the codes' values are a subset of the first one's. A factor of two is eight codes, fewer among subnormals."""
_INVERSES = np.concatenate([[0], 1 / e4m3.VALUES[1 : e4m3.NAN].astype(np.float64)]).astype(np.float32)


def quantize_nvfp4(x: Floats, scale: float, importance: Floats | None = None) -> U8:
    """float32 [rows, cols] -> GGUF rows uint8 [rows, cols/64 * 36], to be multiplied by `scale` when read.

    `scale`: see `tensor_scale`. `importance`: float32 [cols], the weight of each column's squared errors, or None
    for equal ones. Among scales of equal error, and values halfway between two codes, the choice is fixed: the
    native kernel makes the same. Raises QuantizeError if the scale is not positive and finite or a shape is wrong,
    UnsupportedError if the columns are not a multiple of 64.
    """
    check_scale(scale)
    x, importance = check_input(x, NVFP4, importance)
    rows, columns = x.shape
    with np.errstate(all="ignore"):
        y = np.ascontiguousarray((np.abs(x) / F(scale)).reshape(-1, _GROUP).T, np.float32)
        if importance is None:
            w = np.ones((_GROUP, 1), np.float32)
        else:
            w = np.ascontiguousarray(np.tile(importance.reshape(-1, _GROUP).T, rows), np.float32)
        scales = _best_scales(y, w)
        codes = _codes(_round_e2m1(y * _INVERSES[scales])).T.reshape(rows, columns)
    codes[(x < 0) & (codes > 0)] |= 8
    packed = pack_halves(codes.reshape(-1, 4, _GROUP)).reshape(-1, 32)
    return np.concatenate([scales.reshape(-1, 4), packed], axis=1).reshape(rows, -1)


def dequantize_nvfp4(data: U8, scale: float) -> Floats:
    """GGUF rows uint8 [rows, cols/64 * 36] -> float32 [rows, cols], the per-tensor scale applied."""
    blocks = data.reshape(-1, BLOCK_BYTES)
    codes = unpack_halves(blocks[:, 4:].reshape(-1, 4, 8))
    values = E2M1_DOUBLED[codes] * UE4M3_HALVED[blocks[:, :4], None]
    return (values * F(scale)).reshape(len(data), -1)


def check_scale(scale: float) -> None:
    """Raises QuantizeError unless `scale` is a positive, finite float32."""
    if not 0 < F(scale) < np.inf:
        raise QuantizeError("NVFP4", "the per-tensor scale must be positive and finite", found=scale)


def _best_scales(y: Floats, w: Floats) -> U8:
    """E4M3 codes [n] for magnitudes y [16, n] in units of the per-tensor scale, weights w [16, n or 1].

    First the scale that maps the largest magnitude to 6, rounded: ModelOpt's choice. Then upward, `_UP` of them.
    Then downward, where the large magnitudes are clipped: the clipping error of any one weight only grows, so the
    way ends where that of the heaviest weight alone is no less than the best error.
    """
    n = y.shape[1]
    columns = np.arange(n)
    start = np.maximum(e4m3.encode(y.max(axis=0) / F(6)).astype(np.int32), 1)
    heaviest = np.argmax(w * y * y, axis=0)
    y_heaviest, w_heaviest = y[heaviest, columns], np.broadcast_to(w, y.shape)[heaviest, columns]

    best, best_error = start.copy(), _error(y, w, start)
    for up in range(1, _UP + 1):
        code = np.minimum(start + up, _LAST)
        error = _error(y, w, code)
        better = error < best_error
        best[better], best_error[better] = code[better], error[better]
    live = columns
    for down in range(1, _LAST):
        code = start[live] - down
        clipped = y_heaviest[live] - F(6) * e4m3.VALUES[np.maximum(code, 1)]
        clipped = np.where(clipped > 0, clipped, F(0))
        going = (code >= 1) & (w_heaviest[live] * clipped * clipped < best_error[live])
        live, code = live[going], code[going]
        if not live.size:
            break
        error = _error(y[:, live], w if w.shape[1] == 1 else w[:, live], code)
        better = error < best_error[live]
        best[live[better]], best_error[live[better]] = code[better], error[better]
    return best.astype(np.uint8)


_LAST = e4m3.NAN - 1


def _error(y: Floats, w: Floats, code: npt.NDArray[np.int32]) -> Floats:
    """The weighted squared error of every block at the scale `code`, summed from left to right."""
    difference = y - _round_e2m1(y * _INVERSES[code]) * e4m3.VALUES[code]
    terms = w * difference * difference
    total = np.zeros(y.shape[1], np.float32)
    for term in terms:
        total += term
    return total


def _round_e2m1(t: Floats) -> Floats:
    """Magnitudes to the nearest of 0, 0.5, 1, 1.5, 2, 3, 4, 6; halves to the even mantissa."""
    t = np.minimum(t, F(6))
    power = np.maximum((t.view(np.uint32) & np.uint32(0x7F800000)).view(np.float32), F(1))
    magic = power * F(0.75 * 2**23)  # its last place is half of `power`: the step between codes
    return np.asarray((t + magic) - magic, np.float32)


def _codes(q: Floats) -> U8:
    """The codes 0..7 of values that `_round_e2m1` gave."""
    return np.searchsorted(E2M1_DOUBLED[:8] / F(2), q).astype(np.uint8)


# ---- repacking


def _interleave(nibbles: U64) -> U64:
    """Nibbles 0..7 of each 64-bit word to nibbles 0, 2, .. 14; nibbles 8..15 to 1, 3, .. 15."""
    low, high = nibbles & np.uint64(0xFFFFFFFF), nibbles >> np.uint64(32)
    word = np.zeros_like(nibbles)
    for half, place in ((low, 0), (high, 4)):
        spread = half
        for shift, mask in ((16, 0x0000FFFF0000FFFF), (8, 0x00FF00FF00FF00FF), (4, 0x0F0F0F0F0F0F0F0F)):
            spread = (spread | spread << np.uint64(shift)) & np.uint64(mask)
        word |= spread << np.uint64(place)
    return word


def _deinterleave(word: U64) -> U64:
    """The inverse of `_interleave`."""
    nibbles = np.zeros_like(word)
    for place, half in ((0, 0), (4, 32)):
        packed = word >> np.uint64(place) & np.uint64(0x0F0F0F0F0F0F0F0F)
        for shift, mask in ((4, 0x00FF00FF00FF00FF), (8, 0x0000FFFF0000FFFF), (16, 0x00000000FFFFFFFF)):
            packed = (packed | packed >> np.uint64(shift)) & np.uint64(mask)
        nibbles |= packed << np.uint64(half)
    return nibbles


def pack_modelopt(weight: U8, weight_scale: U8, subject: str = "NVFP4 weight") -> U8:
    """ModelOpt's codes uint8 [..., in/2] and block scales (E4M3 bytes) uint8 [..., in/16] -> GGUF rows
    uint8 [..., in/64 * 36]. Lossless.

    Raises FormatError, naming `subject`, if `in` is not a multiple of 64, or a scale is NaN or negative: ggml reads
    the one as 0 and drops the sign of the other. A scale of minus zero becomes zero.
    """
    *rows, half = weight.shape
    columns = 2 * half
    if columns % BLOCK:
        raise FormatError(
            subject,
            "the columns cannot be carried in GGUF's NVFP4 blocks",
            found=f"{columns} columns",
            expected=f"a multiple of {BLOCK}",
            hint="convert it with --dequantize to another type",
        )
    if weight_scale.shape != (*rows, columns // _GROUP):
        raise FormatError(
            subject,
            "the block scales do not fit the codes",
            found=f"scales {list(weight_scale.shape)} for codes {list(weight.shape)}",
            expected=f"{[*rows, columns // _GROUP]}",
        )
    _refuse_unreadable_scales(np.where(weight_scale == 0x80, 0, weight_scale), subject)
    out = np.empty((*rows, columns // BLOCK, BLOCK_BYTES), np.uint8)
    out[..., :4] = weight_scale.reshape(*rows, columns // BLOCK, 4) & 0x7F
    words = np.ascontiguousarray(weight).view("<u8")
    out[..., 4:] = _interleave(words).view(np.uint8).reshape(*rows, columns // BLOCK, 32)
    return out.reshape(*rows, -1)


def unpack_modelopt(data: U8, subject: str = "NVFP4 weight") -> tuple[U8, U8]:
    """GGUF rows uint8 [..., in/64 * 36] -> (codes uint8 [..., in/2], block scales uint8 [..., in/16]).

    Lossless: undoes `pack_modelopt` bit for bit. A scale byte 0x7F, which ggml reads as 0, becomes 0; one with
    the sign bit raises FormatError, naming `subject`.
    """
    *rows, row_bytes = data.shape
    blocks = data.reshape(*rows, row_bytes // BLOCK_BYTES, BLOCK_BYTES)
    scales = np.where(blocks[..., :4] == e4m3.NAN, 0, blocks[..., :4]).astype(np.uint8)
    _refuse_unreadable_scales(scales, subject)
    words = np.ascontiguousarray(blocks[..., 4:]).view("<u8")
    codes = _deinterleave(words).view(np.uint8)
    return codes.reshape(*rows, -1), scales.reshape(*rows, -1)


def _refuse_unreadable_scales(scales: U8, subject: str) -> None:
    bad = scales >= e4m3.NAN
    if bad.any():
        where = np.unravel_index(int(bad.argmax()), bad.shape)
        raise FormatError(
            subject,
            "an NVFP4 block scale is NaN or negative",
            found=f"byte 0x{int(scales[where]):02x} at {[int(i) for i in where]}",
            expected="an E4M3 number of at least 0",
        )
