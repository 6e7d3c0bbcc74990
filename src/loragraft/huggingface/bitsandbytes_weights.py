"""bitsandbytes' 4 and 8 bits, as transformers saves them: what QLoRA trains on, as the floats that it computes with.

4 bits (NF4, FP4; Dettmers et al. 2023, arXiv 2305.14314): `X.weight` uint8, two codes to a byte, the first in the high
half; `X.weight.absmax` a scale for each block, itself in 8 bits with `nested_absmax` and `nested_quant_map`;
`X.weight.quant_map` the 16 values; `X.weight.quant_state.bitsandbytes__nf4` JSON of sizes and types. 8 bits
(LLM.int8(), arXiv 2208.07339): `X.weight` int8 and `X.SCB`, each row's largest absolute value.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from loragraft.arrays import Bytes, Floats
from loragraft.errors import CheckpointError
from loragraft.formats.checkpoint import CheckpointTensor
from loragraft.formats.source import TensorSource
from loragraft.formats.views import Computed, Stored
from loragraft.quants.reference import quantize
from loragraft.quants.types import BY_NAME, F32

STATES = ("quant_state.bitsandbytes__nf4", "quant_state.bitsandbytes__fp4")
#: What stands beside a weight `X.weight`, after its name.
COMPANIONS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map", *STATES)
_TYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
_MAX_STATE = 4096
"""Bytes of JSON; it has a few numbers."""

Find = Callable[[str], CheckpointTensor | None]
"""The companion of this name, if there is one."""


def four_bit_weight(path: Path, codes: CheckpointTensor, find: Find) -> TensorSource:
    """The weight [out, in] in the type that it is computed with. Raises CheckpointError for companions that are missing
    or do not fit."""
    if codes.dtype != "U8":
        raise CheckpointError(path, f"{codes.name} does not hold codes", found=codes.dtype, expected="U8")
    state = _state(path, codes, find)
    shape, block, kind = _facts(path, codes, state)
    rows, columns = shape
    absmax = _scales(path, codes, find, state, -(-rows * columns // block))
    values = _floats(path, codes, find("quant_map"), "quant_map", 16)
    packed = Stored(codes.name, (rows, columns // 2), BY_NAME["I8"], codes)

    def compute(start: int, stop: int) -> Bytes:
        data = packed.rows(start, stop)
        numbers = values[np.stack([data >> 4, data & 15], axis=-1).reshape(-1)]
        blocks = np.arange(start * columns, stop * columns) // block
        found = (numbers * absmax[blocks]).reshape(stop - start, columns)
        return quantize(found, BY_NAME[kind])

    return Computed(codes.name, shape, BY_NAME[kind], compute, [packed])


def eight_bit_weight(path: Path, codes: CheckpointTensor, scales: CheckpointTensor | None) -> TensorSource:
    """The weight [out, in] as float32: code * SCB / 127."""
    if len(codes.shape) != 2:
        raise CheckpointError(path, f"{codes.name} is not a matrix", found=codes.shape)
    rows = _floats(path, codes, scales, "SCB", codes.shape[0])
    stored = Stored(codes.name, codes.shape, BY_NAME["I8"], codes)

    def compute(start: int, stop: int) -> Bytes:
        numbers = stored.rows(start, stop).view(np.int8).astype(np.float32)
        found = numbers * rows[start:stop, None] * np.float32(1 / 127)
        return np.ascontiguousarray(found, np.float32).view(np.uint8)

    return Computed(codes.name, codes.shape, F32, compute, [stored])


def _state(path: Path, codes: CheckpointTensor, find: Find) -> dict[str, Any]:
    tensor = next((found for name in STATES if (found := find(name)) is not None), None)
    try:
        data = b"" if tensor is None else tensor.data().reshape(-1)[:_MAX_STATE].tobytes()
        state = json.loads(data)
    except ValueError:
        state = None
    if not isinstance(state, dict):
        raise CheckpointError(
            path, f"{codes.name} lacks its quant_state", expected=f"{codes.name}.{STATES[0]}"
        )
    return state


def _facts(path: Path, codes: CheckpointTensor, state: dict[str, Any]) -> tuple[tuple[int, int], int, str]:
    """Shape, weights of a block, type."""
    shape, block, kind = state.get("shape"), state.get("blocksize"), _TYPES.get(str(state.get("dtype")))
    counts = shape if isinstance(shape, list) and len(shape) == 2 else []
    whole = all(type(count) is int and 0 < count < 2**31 for count in [*counts, block])
    count = 1
    for length in codes.shape:
        count *= length
    if not whole or not counts or kind is None or counts[1] % 2 or counts[0] * counts[1] != 2 * count:
        raise CheckpointError(
            path, f"bad quant_state of {codes.name}", found=repr(state)[:120], expected=f"{2 * count} weights"
        )
    return (counts[0], counts[1]), int(str(block)), kind


def _scales(path: Path, codes: CheckpointTensor, find: Find, state: dict[str, Any], count: int) -> Floats:
    absmax = find("absmax")
    if absmax is None or absmax.dtype != "U8":
        return _floats(path, codes, absmax, "absmax", count)
    block, offset = state.get("nested_blocksize"), state.get("nested_offset")
    if type(block) is not int or block < 1 or not isinstance(offset, int | float) or not np.isfinite(offset):
        raise CheckpointError(path, f"bad quant_state of {codes.name}", found=repr(state)[:120])
    numbers = absmax.data().reshape(-1)
    if len(numbers) != count:
        raise CheckpointError(
            path, f"absmax of {codes.name} does not fit", found=len(numbers), expected=count
        )
    values = _floats(path, codes, find("nested_quant_map"), "nested_quant_map", 256)
    outer = _floats(path, codes, find("nested_absmax"), "nested_absmax", -(-count // block))
    return values[numbers] * outer[np.arange(count) // block] + np.float32(offset)


def _floats(
    path: Path, codes: CheckpointTensor, tensor: CheckpointTensor | None, name: str, count: int
) -> Floats:
    found = np.empty(0, np.float32)
    if tensor is not None and tensor.dtype == "F32":
        found = tensor.data().reshape(-1).view("<f4").astype(np.float32)
    if len(found) != count or not np.isfinite(found).all():
        raise CheckpointError(
            path,
            f"{name} of {codes.name} does not fit",
            found="none" if tensor is None else f"{tensor.dtype} {tensor.shape}",
            expected=f"F32, {count} numbers",
        )
    return found
