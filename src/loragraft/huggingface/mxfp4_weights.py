"""MXFP4 as gpt-oss' checkpoints have it: `X_blocks` uint8 [..., out, in/32, 16], two E2M1 codes to a byte (the first in
the low half), and `X_scales` uint8 [..., out, in/32], exponents with a bias of 127 (transformers,
integrations/mxfp4.py).

GGUF has the same codes and exponents, a block's second half in the high halves of its bytes: nothing is rounded.
"""

from __future__ import annotations

from math import prod
from pathlib import Path

import numpy as np

from loragraft.arrays import Bytes
from loragraft.errors import CheckpointError
from loragraft.formats.checkpoint import CheckpointTensor
from loragraft.formats.source import TensorSource
from loragraft.formats.views import Computed, Stored
from loragraft.quants.types import BY_NAME

_BLOCK, _CODES = 32, 16
"""Weights of a block, and the bytes that they take."""


def mxfp4_weight(path: Path, blocks: CheckpointTensor, scales: CheckpointTensor | None) -> TensorSource:
    """The weight [..., out, in] in GGUF's MXFP4, row by row. Raises CheckpointError for scales that do not fit."""
    *stack, groups, codes = blocks.shape if len(blocks.shape) > 2 else (0, 0, 0)
    expected = f"U8 {(*stack, groups)}"
    if blocks.dtype != "U8" or codes != _CODES or len(stack) < 1 or 0 in blocks.shape:
        raise CheckpointError(
            path,
            f"{blocks.name} is not an MXFP4 weight",
            found=f"{blocks.dtype} {blocks.shape}",
            expected=f"U8 [..., {_CODES}]",
        )
    if scales is None or scales.dtype != "U8" or scales.shape != (*stack, groups):
        raise CheckpointError(
            path,
            f"the scales of {blocks.name} do not fit",
            found="none" if scales is None else f"{scales.dtype} {scales.shape}",
            expected=expected,
        )
    rows = prod(stack)
    packed = Stored(blocks.name, (rows, groups * codes), BY_NAME["I8"], blocks)
    exponents = Stored(scales.name, (rows, groups), BY_NAME["I8"], scales)

    def compute(start: int, stop: int) -> Bytes:
        pairs = packed.rows(start, stop).reshape(stop - start, groups, codes)
        values = np.stack([pairs & 15, pairs >> 4], axis=-1).reshape(stop - start, groups, _BLOCK)
        block = np.empty((stop - start, groups, 1 + codes), np.uint8)
        block[..., 0] = exponents.rows(start, stop).reshape(stop - start, groups)
        block[..., 1:] = values[..., :codes] | values[..., codes:] << 4
        return block.reshape(stop - start, -1)

    shape = (*stack, groups * _BLOCK)
    return Computed(blocks.name, shape, BY_NAME["MXFP4"], compute, [packed, exponents])


def unpack_mxfp4(rows: Bytes) -> tuple[Bytes, Bytes]:
    """The way back: rows of GGUF's MXFP4, uint8 [n, in/32 * 17], as rows of `X_blocks` and of `X_scales`."""
    blocks = np.ascontiguousarray(rows).reshape(-1, 1 + _CODES)
    codes = np.concatenate([blocks[:, 1:] & 15, blocks[:, 1:] >> 4], axis=1)
    pairs = codes[:, ::2] | codes[:, 1::2] << 4
    return pairs.reshape(len(rows), -1), blocks[:, 0].reshape(len(rows), -1)
