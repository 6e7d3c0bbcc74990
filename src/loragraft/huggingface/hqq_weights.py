"""HQQ's weights (Badri and Shaji 2023, half-quadratic quantization), as transformers saves them.

A weight [out, in] of `X.shape`, its numbers in a row, is written as a matrix: of groups, one to a row (`X.axis` 1) or
one to a column (0). `X.W_q` has that matrix' rows in parts, one after the other: a byte of 4-bit codes has a row of
the first half in its high bits and one of the second half in its low ones. So do bytes of 1 and 2 bits, and words
with ten codes of 3 bits. `X.scale` and `X.zero` have a number for each group. A weight is (code - zero) * scale; the
difference is rounded to the type that HQQ computes in (`X.compute_dtype`), and so is the product. Settings lie beside
it as tensors: numbers, or texts as the numbers of their characters. Source: mobiusml/hqq 0.2.8 (core/quantize.py,
bitpack.py, utils.py).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from loragraft.arrays import Bytes, Floats
from loragraft.errors import CheckpointError, UnsupportedError
from loragraft.formats.safetensors import CheckpointTensor
from loragraft.formats.views import Computed, float_rows
from loragraft.huggingface.integer_weights import Find, Integers, finite
from loragraft.quants.reference import quantize
from loragraft.quants.types import BY_NAME, QuantType

#: By `packing`: the type of what is packed, bits of a code, how many codes are in one.
_PACKINGS = {
    "8bit_u8": ("u1", 8, 1),
    "4bit_u8": ("u1", 4, 2),
    "3bit_32": ("<u4", 3, 10),
    "2bit_u8": ("u1", 2, 4),
    "1bit_u8": ("u1", 1, 8),
}
_TYPES = {"torch.float16": "F16", "torch.bfloat16": "BF16", "torch.float32": "F32"}
#: What lies beside `X.W_q`, besides `X.bias`.
PARTS = frozenset(
    """
    W_q scale zero shape nbits group_size axis packing unpack_view_dtype view_as_float quant_scale quant_zero
    compute_dtype offload_meta encoded_state_dict stores_quant_config channel_wise optimize round_zero
    """.split()  # noqa: SIM905
)
_LONGEST = 32
"""Characters of a text that is a setting."""


def hqq_weight(path: Path, name: str, find: Find) -> Integers:
    """The weight `name` [out, in] of the tensors beside it. Raises CheckpointError for what does not fit,
    UnsupportedError for scales that are quantized themselves, and packings that are not known."""
    stored = find("W_q")
    assert stored is not None
    if any(_number(path, name, find, part, 0) for part in ("quant_scale", "quant_zero")):
        raise UnsupportedError(
            path,
            f"the scales of {name} are quantized themselves (HQQ before 0.2)",
            hint="take the model that was quantized",
        )
    packing = _text(path, name, find("packing"))
    if packing not in _PACKINGS:
        raise UnsupportedError(
            path,
            f"HQQ packs {name} in another way",
            found=repr(packing)[:40],
            expected=" or ".join(_PACKINGS),
        )
    word, bits, each = _PACKINGS[packing]
    out, columns = _shape(path, name, find("shape"))
    size, axis = (_number(path, name, find, part, None) for part in ("group_size", "axis"))
    if axis not in (0, 1) or size < 1 or out * columns % size:
        raise CheckpointError(
            path,
            f"{name} does not fall into groups of HQQ",
            found=f"{out} x {columns} weights, group_size {size}, axis {axis}"[:100],
            expected="a group_size that divides them, and axis 0 or 1",
        )
    groups = out * columns // size
    height, width = (groups, size) if axis == 1 else (size, groups)
    steps = -(-height // each)
    if stored.nbytes != steps * width * np.dtype(word).itemsize or (height % each and packing != "3bit_32"):
        raise CheckpointError(
            path,
            f"W_q of {name} does not fit",
            found=f"{stored.dtype} {stored.shape}",
            expected=f"{steps} x {width} of {np.dtype(word).itemsize} bytes, for {out} x {columns} weights",
            hint="was the folder copied whole? Download it again",
        )
    scales, zeros = (_of_groups(path, name, part, find(part), groups) for part in ("scale", "zero"))
    kind = BY_NAME[_TYPES.get(_text(path, name, find("compute_dtype")), scales.dtype)]
    factors, offsets = (_rounded(finite(path, name, one).reshape(-1), kind) for one in (scales, zeros))
    packed = stored.data().view(word).reshape(steps, width)

    def rows(start: int, stop: int) -> Bytes:
        begin, end = start * columns, stop * columns
        first, last = begin // width, -(-end // width)
        wanted = np.arange(first, last)
        shifts = (bits * (each - 1 - wanted // steps)).astype(word)
        codes = packed[wanted % steps] >> shifts[:, None] & np.array((1 << bits) - 1, word)
        of = wanted[:, None] if axis == 1 else slice(None)
        centred = _rounded(codes.astype(np.float32) - offsets[of], kind)
        values = (centred * factors[of]).reshape(-1)[begin - first * width : end - first * width]
        return quantize(np.ascontiguousarray(values.reshape(-1, columns)), kind)

    said = find("nbits")  # 1.58 is a float
    if said is not None and said.dtype == "I32":
        bits_said = _number(path, name, find, "nbits", None)
        return Integers(Computed(name, (out, columns), kind, rows), min(bits, max(1, bits_said)))
    return Integers(Computed(name, (out, columns), kind, rows), bits)


def _rounded(values: Floats, kind: QuantType) -> Floats:
    shape = values.shape
    return float_rows(quantize(np.ascontiguousarray(values.reshape(1, -1)), kind), kind).reshape(shape)


def _of_groups(
    path: Path, name: str, part: str, tensor: CheckpointTensor | None, groups: int
) -> CheckpointTensor:
    size = 0 if tensor is None else int(np.prod(tensor.shape, dtype=np.int64))
    if tensor is None or tensor.dtype not in _TYPES_OF_FILES or size != groups:
        raise CheckpointError(
            path,
            f"{part} of {name} does not fit",
            found="none" if tensor is None else f"{tensor.dtype} {tensor.shape}",
            expected=f"{groups} floating-point numbers",
        )
    return tensor


_TYPES_OF_FILES = tuple(_TYPES.values())


def _shape(path: Path, name: str, tensor: CheckpointTensor | None) -> tuple[int, int]:
    sizes = [] if tensor is None or tensor.dtype != "I64" or tensor.shape != (2,) else tensor.array().tolist()
    if len(sizes) != 2 or not all(0 < size < 1 << 31 for size in sizes):
        raise CheckpointError(
            path, f"bad shape of {name}", found=repr(sizes)[:60], expected="I64 [out, in], both above 0"
        )
    return sizes[0], sizes[1]


def _number(path: Path, name: str, find: Find, part: str, usual: int | None) -> int:
    tensor = find(part)
    if tensor is None and usual is not None:
        return usual
    values: npt.NDArray[np.generic] | None = None
    if tensor is not None and tensor.dtype in ("U8", "I32", "I64") and tensor.shape in ((), (1,)):
        values = tensor.array().reshape(-1)
    if values is None:
        raise CheckpointError(
            path,
            f"bad {part} of {name}",
            found="none" if tensor is None else f"{tensor.dtype} {tensor.shape}",
            expected="a whole number",
        )
    return int(values[0])


def _text(path: Path, name: str, tensor: CheckpointTensor | None) -> str:
    if tensor is None:
        return ""
    if tensor.dtype != "U8" or len(tensor.shape) != 1 or tensor.shape[0] > _LONGEST:
        raise CheckpointError(
            path, f"bad {tensor.name}", found=f"{tensor.dtype} {tensor.shape}", expected="a short text, U8"
        )
    return bytes(tensor.array()).decode("latin-1")
