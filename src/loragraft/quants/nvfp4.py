"""NVFP4 with a per-tensor scale: repacking between ModelOpt's layout and GGUF's.

A weight is `scale * E4M3 * E2M1`: a float32 per tensor, eight bits per 16 weights, four bits per weight.

ModelOpt (and compressed-tensors) store the codes as uint8 [..., in/2], the even column in the low nibble, and the
block scales as E4M3 [..., in/16]. GGUF stores blocks of 64 weights in 36 bytes: four scales, then per 16 weights
eight bytes of which byte j holds weight j in its low nibble and weight 8 + j in the high one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from loragraft.errors import FormatError
from loragraft.quants import e4m3

U8 = npt.NDArray[np.uint8]
U64 = npt.NDArray[Any]

BLOCK = 64
BLOCK_BYTES = 36
_GROUP = 16


def tensor_scale(amax: float) -> float:
    """The per-tensor scale for weights of at most `amax`: the largest block gets scale 448 and code 6.

    ModelOpt's rule, amax / (448 * 6) in float32. Tensors whose products are added or stored together (q/k/v,
    gate/up) share a scale: pass the largest of their magnitudes. All-zero weights get scale 1.
    """
    scale = np.float32(amax) / np.float32(e4m3.MAX * 6)
    return float(scale) if scale > 0 else 1.0


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

    Raises FormatError, naming `subject`, if `in` is no multiple of 64, or a scale is NaN or negative: ggml reads
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
