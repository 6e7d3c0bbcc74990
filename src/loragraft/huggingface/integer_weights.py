"""Weights that are whole numbers with a scale for each group: GPTQ's, AWQ's, and compressed-tensors' int4 and int8.

Each is (code - zero) * scale, in the type of the scales, as the libraries compute it.

- GPTQ (Frantar et al. 2022, arXiv 2210.17323): `X.qweight` I32 [in * bits / 32, out] holds a column of codes as one
  stream of bits, the lowest first; `X.qzeros` [groups, out * bits / 32] the zeros in rows, less 1 in the first version
  of the format; `X.scales` [groups, out]; `X.g_idx` [in] the group of each input. Sources: AutoGPTQ
  (nn_modules/qlinear), ModelCloud/GPTQModel.
- AWQ (Lin et al. 2023, arXiv 2306.00978), version "gemm": `X.qweight` [in, out / 8] holds rows, eight codes to a word
  in the order 0 2 4 6 1 3 5 7; `X.qzeros` and `X.scales` as GPTQ's, with the same order and nothing subtracted. Source:
  casper-hansen/AutoAWQ (modules/linear/gemm.py, utils/packing_utils.py). Version "gemv": `X.qweight` [out, in / 8]
  holds rows, the lowest code first; `X.qzeros` [out, words] so too, and `X.scales` [out, 8 * words], of which the
  groups are the first (modules/linear/gemv.py).
- AutoRound (Cheng et al. 2023, arXiv 2309.05516): either of these, as `packing_format` says, often without `g_idx`; its
  own packing is GPTQ's with nothing subtracted. Source: intel/auto-round (export/export_to_autoround/export.py).
- compressed-tensors: `X.weight_packed` I32 [out, in * bits / 32], codes raised by half their range; `X.weight_shape`;
  `X.weight_scale` [out, groups]; `X.weight_zero_point`, packed along out; `X.weight_g_idx`. Or `X.weight` I8 with scale
  and zero point as they are. Source: vllm-project/compressed-tensors (compressors/pack_quantized, naive_quantized).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from loragraft.arrays import Bytes
from loragraft.errors import CheckpointError, UnsupportedError
from loragraft.formats.safetensors import CheckpointTensor
from loragraft.formats.source import TensorSource
from loragraft.formats.views import Computed, Stored, float_rows
from loragraft.quants.reference import quantize
from loragraft.quants.types import BY_NAME

_FLOATS = ("F32", "F16", "BF16")
#: Which code of eight lies at a place of a word.
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
AUTO_ROUND = ("auto-round", "intel/auto-round")
#: The four tensors of a GPTQ or AWQ weight, after the module's name.
PARTS = ("qweight", "qzeros", "scales", "g_idx")

Numbers = npt.NDArray[np.signedinteger[Any]]
Find = Callable[[str], CheckpointTensor | None]
"""The tensor `X.part`, if there is one."""


@dataclass(frozen=True, slots=True)
class Integers:
    """A weight that was read: what it is called, and what is worth knowing."""

    source: TensorSource
    bits: int
    note: str | None = None


def gptq_or_awq(path: Path, config: dict[str, Any], name: str, find: Find) -> Integers:
    """The weight `name` [out, in]. Raises CheckpointError for tensors that do not fit, UnsupportedError for another
    layout."""
    config = as_gptq_or_awq(path, config, name)
    weight, zeros, scales, groups = (find(part) for part in PARTS)
    words = words_of(path, name, weight, "qweight")
    if scales is None or scales.dtype not in _FLOATS or len(scales.shape) != 2:
        raise _misfit(path, name, "scales", scales, "floating-point numbers [groups, out]")
    method = config.get("quant_method")
    if method == "awq" and str(config.get("version")).lower() == "gemv":
        return _gemv(path, config, name, words, words_of(path, name, zeros, "qzeros"), scales)
    if method == "awq" or (method != "gptq" and words.shape[1] * 8 == scales.shape[1]):
        return _awq(path, config, name, words, words_of(path, name, zeros, "qzeros"), scales)
    return _gptq(path, config, name, words, words_of(path, name, zeros, "qzeros"), scales, groups)


def as_gptq_or_awq(path: Path, config: dict[str, Any], name: str) -> dict[str, Any]:
    """AutoRound's configuration, of the weight `name`, in the words of the layout that it uses; any other as it is."""
    if config.get("quant_method") not in AUTO_ROUND:
        return config
    packing, kind = (
        str(config.get("packing_format") or "auto_round:auto_gptq"),
        config.get("data_type", "int"),
    )
    layout = packing.removeprefix("auto_round:").removeprefix("auto_")
    known = ("gptq", "awq", "gptqmodel", "round", "exllamav2", "auto")
    if layout not in known or kind != "int":
        raise UnsupportedError(
            path,
            "AutoRound's weights in a layout that is not read",
            found=f"packing_format {packing!r}, data_type {kind!r}"[:80],
            expected="auto_round:auto_gptq, auto_round:auto_awq or auto_round, of int",
            hint="take the repository's version in one of these, or the model that was quantized",
        )
    others = config.get("extra_config")
    own = others.get(name.removesuffix(".weight")) if isinstance(others, dict) else None
    found = {**config, **(own if isinstance(own, dict) else {})}
    if layout == "awq":
        return {**found, "quant_method": "awq", "version": "gemm"}
    first = layout in ("gptq", "auto")
    return {**found, "quant_method": "gptq", "checkpoint_format": "gptq" if first else "gptq_v2"}


def _gptq(
    path: Path,
    config: dict[str, Any],
    name: str,
    words: CheckpointTensor,
    zeros: CheckpointTensor,
    scales: CheckpointTensor,
    groups: CheckpointTensor | None,
) -> Integers:
    layout = config.get("checkpoint_format") or "gptq"
    if layout not in ("gptq", "gptq_v2"):
        raise UnsupportedError(
            path,
            "GPTQ weights in a layout that is not read",
            found=repr(layout)[:40],
            expected="gptq or gptq_v2",
            hint="take the repository's version in one of these, or the model that was quantized",
        )
    of_input = None if groups is None else _whole(path, groups)
    bits = config.get("bits")
    if of_input is not None and len(of_input):
        bits = 32 * words.shape[0] // len(of_input)  # modules may have bits of their own
    if bits not in (2, 3, 4, 8) or 32 * words.shape[0] % bits:
        raise _misfit(path, name, "qweight", words, "2, 3, 4 or 8 bits")
    out, columns = words.shape[1], 32 * words.shape[0] // bits
    count = scales.shape[0]
    if of_input is None:
        of_input = _in_a_row(path, name, config, columns, count)
    if scales.shape[1] != out or len(of_input) != columns or not _within(of_input, count):
        raise _misfit(path, name, "scales", scales, f"[groups, {out}], and g_idx [{columns}] of these groups")
    if zeros.shape != (count, -(-out * bits // 32)):
        raise _misfit(path, name, "qzeros", zeros, f"[{count}, {out * bits // 32}]")
    subtracted = 1 if layout == "gptq" else 0
    offsets = _unpacked(_array(zeros).T, bits, out).T + subtracted
    factors = finite(path, name, scales)
    note = None
    if subtracted and (offsets == 1 << bits).any():
        note = (
            f"a zero point of {name} lies beyond its {bits} bits; programs that read GPTQ disagree about that, "
            "and it is read as AutoGPTQ does"
        )
    stored = _array(words)

    def codes(start: int, stop: int) -> Numbers:
        return _unpacked(stored[:, start:stop], bits, columns).T

    value = _by_group(offsets.T, factors.T, of_input)
    return Integers(computed(name, (out, columns), scales, codes, value), bits, note)


def _awq(
    path: Path,
    config: dict[str, Any],
    name: str,
    words: CheckpointTensor,
    zeros: CheckpointTensor,
    scales: CheckpointTensor,
) -> Integers:
    version = str(config.get("version") or "gemm").lower()
    if version != "gemm" or config.get("bits", 4) != 4:
        raise UnsupportedError(
            path,
            "AWQ weights in a layout that is not read",
            found=f"version {version}, {config.get('bits', 4)} bits"[:60],
            expected="version gemm or gemv, 4 bits",
            hint="take the repository's version in this one, or the model that was quantized",
        )
    columns, out = words.shape[0], 8 * words.shape[1]
    count = scales.shape[0]
    if scales.shape[1] != out or not count or columns % count:
        raise _misfit(path, name, "scales", scales, f"[groups, {out}], for {columns} inputs")
    if zeros.shape != (count, words.shape[1]):
        raise _misfit(path, name, "qzeros", zeros, f"[{count}, {words.shape[1]}]")
    place = np.argsort(_AWQ_ORDER)
    offsets = _eights(_array(zeros))[..., place].reshape(count, out)
    factors = finite(path, name, scales)
    of_input = np.arange(columns) // (columns // count)
    stored = _array(words)

    def codes(start: int, stop: int) -> Numbers:
        first = start // 8
        taken = _eights(stored[:, first : -(-stop // 8)])[..., place].reshape(columns, -1)
        return taken[:, start - 8 * first : stop - 8 * first].T

    value = _by_group(offsets.T, factors.T, of_input)
    return Integers(computed(name, (out, columns), scales, codes, value), 4)


def _gemv(
    path: Path,
    config: dict[str, Any],
    name: str,
    words: CheckpointTensor,
    zeros: CheckpointTensor,
    scales: CheckpointTensor,
) -> Integers:
    if config.get("bits", config.get("w_bit", 4)) != 4:
        raise UnsupportedError(path, "AWQ weights, version gemv", found=config.get("bits"), expected="4 bits")
    out, columns = words.shape[0], 8 * words.shape[1]
    size = config.get("group_size", config.get("q_group_size", 128))
    size = columns if size == -1 else size
    if type(size) is not int or size < 1 or columns % size:
        raise CheckpointError(
            path,
            f"{name} does not fall into groups",
            found=f"{columns} inputs, group_size {size!r}"[:80],
            expected="a group_size that divides them",
        )
    count = columns // size
    if zeros.shape[0] != out or 8 * zeros.shape[1] < count:
        raise _misfit(path, name, "qzeros", zeros, f"[{out}, at least {-(-count // 8)}]")
    if scales.shape[0] != out or scales.shape[1] < count:
        raise _misfit(path, name, "scales", scales, f"[{out}, at least {count}]")
    offsets = _eights(_array(zeros)).reshape(out, -1)[:, :count]
    factors = finite(path, name, scales)[:, :count]
    stored, of_input = _array(words), np.arange(columns) // size

    def codes(start: int, stop: int) -> Numbers:
        return _eights(stored[start:stop]).reshape(-1, columns)

    value = _by_group(offsets, factors, of_input)
    return Integers(computed(name, (out, columns), scales, codes, value, words), 4)


def packed_weight(path: Path, name: str, packed: CheckpointTensor, find: Find, bits: int | None) -> Integers:
    """compressed-tensors' pack-quantized. `bits`: as the configuration says, for where the shapes do not tell."""
    words = words_of(path, name, packed, "weight_packed")
    shape = find("weight_shape")
    sizes = [] if shape is None else [int(length) for length in _whole(path, shape)]
    rows, width = words.shape
    columns = sizes[1] if len(sizes) == 2 else 0
    fitting = [b for b in range(1, 9) if 0 < columns < 1 << 31 and -(-columns * b // 32) == width]
    if len(sizes) != 2 or sizes[0] != rows or not fitting:
        raise _misfit(path, name, "weight_shape", shape, f"two numbers that fit {words.shape}")
    bits = bits if bits in fitting else fitting[0]
    scales = _group_scales(path, name, find("weight_scale"), rows)
    count = scales.shape[1]
    of_input = _groups(path, name, find("weight_g_idx"), columns, count)
    zeros = find("weight_zero_point")
    offsets: Numbers = np.full((rows, count), 1 << (bits - 1), np.int32)
    if zeros is not None:
        if zeros.dtype != "I32" or zeros.shape != (-(-rows * bits // 32), count):
            raise _misfit(path, name, "weight_zero_point", zeros, f"I32 [{-(-rows * bits // 32)}, {count}]")
        offsets = _unpacked(_array(zeros), bits, rows)
    factors = np.broadcast_to(finite(path, name, scales), (rows, count))
    stored = _array(words)

    def codes(start: int, stop: int) -> Numbers:
        return _unpacked(stored[start:stop].T, bits, columns).T

    value = _by_group(offsets, factors, of_input)
    return Integers(computed(name, (rows, columns), scales, codes, value, words), bits)


def byte_weight(path: Path, name: str, stored: CheckpointTensor, find: Find) -> Integers:
    """compressed-tensors' int-quantized: whole numbers in bytes."""
    if len(stored.shape) != 2 or stored.dtype != "I8":
        raise _misfit(path, name, "weight", stored, "I8 [out, in]")
    rows, columns = stored.shape
    scales = _group_scales(path, name, find("weight_scale"), rows)
    of_input = _groups(path, name, find("weight_g_idx"), columns, scales.shape[1])
    zeros = find("weight_zero_point")
    if zeros is not None and (zeros.dtype != "I8" or zeros.shape != scales.shape):
        raise _misfit(path, name, "weight_zero_point", zeros, f"I8 {scales.shape}")
    shape = (rows if len(scales.shape) == 2 and scales.shape[0] == rows else 1, scales.shape[1])
    offsets = np.zeros(shape, np.int32) if zeros is None else zeros.array().astype(np.int32).reshape(shape)
    factors = finite(path, name, scales).reshape(shape)
    of_row = np.arange(rows) if shape[0] == rows else np.zeros(rows, np.intp)
    bytes_ = stored.array()

    def codes(start: int, stop: int) -> Numbers:
        return bytes_[start:stop].astype(np.int32)

    def value(start: int, stop: int) -> tuple[Any, Any]:
        at = of_row[start:stop, None]
        return offsets[at, of_input], factors[at, of_input]

    return Integers(computed(name, (rows, columns), scales, codes, value, stored), 8)


def _by_group(
    offsets: npt.NDArray[Any], factors: npt.NDArray[Any], of_input: npt.NDArray[Any]
) -> Callable[[int, int], tuple[Any, Any]]:
    """The `value` of `computed` for zero points and scales [out, groups]; `of_input` [in]: each input's group."""
    return lambda start, stop: (offsets[start:stop, of_input], factors[start:stop, of_input])


def computed(
    name: str,
    shape: tuple[int, int],
    scales: CheckpointTensor,
    codes: Callable[[int, int], Numbers],
    value: Callable[[int, int], tuple[Any, Any]],
    stored: CheckpointTensor | None = None,
) -> TensorSource:
    """(codes - offset) * factor in the type of the scales: of rows start to stop, `codes` [rows, in] and `value`, its
    offset and factor. `stored`: what holds the codes, if its rows are the weight's."""
    kind = BY_NAME[scales.dtype]

    def rows(start: int, stop: int) -> Bytes:
        offset, factor = value(start, stop)
        found = (codes(start, stop) - offset).astype(np.float32) * factor
        return quantize(np.ascontiguousarray(found, np.float32), kind)

    of = (
        []
        if stored is None
        else [Stored(stored.name, (shape[0], stored.nbytes // shape[0]), BY_NAME["I8"], stored)]
    )
    return Computed(name, shape, kind, rows, of)


def _unpacked(words: npt.NDArray[Any], bits: int, count: int) -> Numbers:
    """[words, n] as [count, n]: every column is a stream of bits, the lowest first."""
    if 32 % bits == 0:
        shifts = np.arange(0, 32, bits, dtype=np.uint32)[None, :, None]
        codes = words.astype(np.uint32, copy=False)[:, None, :] >> shifts & np.uint32((1 << bits) - 1)
        return codes.reshape(-1, words.shape[1])[:count].astype(np.int32)
    first = np.arange(count) * bits
    word, shift = first // 32, first % 32
    wide = words.astype(np.uint32).astype(np.uint64)
    # Two words at a time, for a code may lie in both.
    after = np.concatenate([wide[1:], np.zeros_like(wide[:1])])
    pairs = wide | after << np.uint64(32)
    return (pairs[word] >> shift.astype(np.uint64)[:, None] & np.uint64((1 << bits) - 1)).astype(np.int32)


def _eights(words: npt.NDArray[Any]) -> Numbers:
    """[..., n] words as [..., n, 8] codes of 4 bits, by their place in the word."""
    shifts = np.arange(0, 32, 4, dtype=np.uint32)
    return (words.astype(np.uint32)[..., None] >> shifts & np.uint32(15)).astype(np.int32)


def _array(words: CheckpointTensor) -> npt.NDArray[Any]:
    return words.data().view("<u4").reshape(words.shape)


def words_of(path: Path, name: str, tensor: CheckpointTensor | None, part: str) -> CheckpointTensor:
    if tensor is None or tensor.dtype not in ("I32", "U32") or len(tensor.shape) != 2 or 0 in tensor.shape:
        raise _misfit(path, name, part, tensor, "a matrix, I32")
    return tensor


def _whole(path: Path, tensor: CheckpointTensor) -> Numbers:
    if tensor.dtype not in ("I32", "I64") or len(tensor.shape) != 1:
        raise CheckpointError(
            path, f"bad {tensor.name}", found=f"{tensor.dtype} {tensor.shape}", expected="I32"
        )
    return tensor.array().astype(np.int64)


def finite(path: Path, name: str, scales: CheckpointTensor) -> npt.NDArray[np.float32]:
    found = float_rows(scales.data().reshape(1, -1), BY_NAME[scales.dtype]).reshape(scales.shape)
    if not np.isfinite(found).all():
        raise CheckpointError(path, f"the scales of {name} hold NaN or infinity", found=scales.name)
    return found


def _group_scales(path: Path, name: str, scales: CheckpointTensor | None, rows: int) -> CheckpointTensor:
    """[rows, groups], or for bytes one for all."""
    if scales is not None and scales.dtype in _FLOATS:
        if len(scales.shape) == 2 and scales.shape[0] in (1, rows) and scales.shape[1]:
            return scales
        if scales.shape in ((), (1,), (rows,)):
            return _Reshaped(scales, (scales.shape[0] if scales.shape else 1, 1))
    raise _misfit(path, name, "weight_scale", scales, f"floating-point numbers [{rows}, groups]")


class _Reshaped(CheckpointTensor):
    """The same bytes in another shape."""

    def __init__(self, tensor: CheckpointTensor, shape: tuple[int, ...]) -> None:
        super().__init__(
            tensor.file, tensor.name, tensor.dtype, shape, tensor.offset, tensor.nbytes, tensor._mapping
        )


def _groups(path: Path, name: str, order: CheckpointTensor | None, columns: int, count: int) -> Numbers:
    """The group of every input."""
    if order is not None:
        found = _whole(path, order)
        if len(found) == columns and _within(found, count):
            return found
        if not (found == -1).all():  # not set
            raise _misfit(path, name, "weight_g_idx", order, f"[{columns}], 0 to {count - 1}")
    if columns % count:
        raise CheckpointError(
            path, f"{name} does not fall into groups", found=f"{columns} inputs, {count} groups"
        )
    return np.arange(columns) // (columns // count)


def _in_a_row(path: Path, name: str, config: dict[str, Any], columns: int, count: int) -> Numbers:
    """Groups of inputs that follow each other, the last of which may be smaller."""
    size = config.get("group_size", -1)
    size = columns if size == -1 else size
    if type(size) is not int or size < 1 or -(-columns // size) != count:
        raise CheckpointError(
            path,
            f"{name} does not fall into groups",
            found=f"group_size {size!r}"[:60],
            expected=f"{count} groups",
        )
    return np.arange(columns) // size


def _within(numbers: Numbers, count: int) -> bool:
    return len(numbers) > 0 and int(numbers.min()) >= 0 and int(numbers.max()) < count


def _misfit(
    path: Path, name: str, part: str, tensor: CheckpointTensor | None, expected: str
) -> CheckpointError:
    return CheckpointError(
        path,
        f"{part} of {name} does not fit",
        found="none" if tensor is None else f"{tensor.dtype} {tensor.shape}",
        expected=expected,
        hint="was the folder copied whole? Download it again",
    )
