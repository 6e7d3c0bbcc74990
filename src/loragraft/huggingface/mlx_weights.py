"""Weights that MLX quantized: W = scale * code + bias for every group of columns (mlx.core.quantize, mode "affine").

`X.weight` U32 [out, in * bits / 32] holds the codes of a row as one stream of bits, the lowest first; `X.scales` and
`X.biases` are [out, in / group]. config.json says bits and group size under `quantization`, for all weights and, under
a module's name, for that one. Source: ml-explore/mlx (mlx/ops.cpp, `affine_quantize`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from loragraft.arrays import Bytes
from loragraft.errors import CheckpointError, UnsupportedError
from loragraft.formats.safetensors import CheckpointTensor
from loragraft.formats.source import TensorSource
from loragraft.formats.views import Computed, Stored, float_rows
from loragraft.quants.types import BY_NAME, F32

_BITS = (2, 3, 4, 5, 6, 8)
_FLOATS = ("F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class MlxPacking:
    """Bits of a code, and how many columns share a scale."""

    bits: int
    group: int


def mlx_packing(path: Path, quantization: Any, module: str) -> MlxPacking:
    """How the weight of `module` is packed, by `quantization` of config.json. Raises UnsupportedError for another mode
    than "affine", CheckpointError for numbers that mean nothing."""
    table = quantization if isinstance(quantization, Mapping) else {}
    own = table.get(module)
    own = own if isinstance(own, Mapping) else {}
    mode = own.get("mode", table.get("mode", "affine"))
    if mode != "affine":
        raise UnsupportedError(
            path,
            "quantized by MLX in a mode that is not supported",
            found=repr(mode)[:40],
            expected="affine",
            hint=f"dequantize it with mlx-lm: mlx_lm.convert --hf-path {path} --mlx-path {path}-f16 --dequantize",
        )
    bits, group = own.get("bits", table.get("bits")), own.get("group_size", table.get("group_size", 64))
    if bits not in _BITS or type(group) is not int or not 0 < group <= 1 << 20:
        raise CheckpointError(
            path / "config.json",
            "does not say how MLX quantized the weights",
            found=f"bits {bits!r}, group_size {group!r}"[:80],
            expected=f"quantization with bits ({', '.join(map(str, _BITS))}) and group_size",
        )
    return MlxPacking(bits, group)


def mlx_weight(
    path: Path,
    codes: CheckpointTensor,
    scales: CheckpointTensor | None,
    biases: CheckpointTensor | None,
    packing: MlxPacking,
) -> TensorSource:
    """The weight as float32 [out, in]. Raises CheckpointError for companions that do not fit."""
    bits, group = packing.bits, packing.group
    words = codes.shape[-1] if len(codes.shape) == 2 else 0
    columns = 32 * words // bits
    expected = (codes.shape[0], columns // group) if words else ()
    for name, part in (("scales", scales), ("biases", biases)):
        if part is None or part.dtype not in _FLOATS or part.shape != expected or columns % group:
            raise CheckpointError(
                path,
                f"{codes.name} {codes.shape} has no {name} that fit {bits} bits in groups of {group}",
                found="none" if part is None else f"{part.dtype} {part.shape}",
                expected=expected or "a matrix of codes",
            )
    assert scales is not None
    assert biases is not None
    packed = Stored(codes.name, (codes.shape[0], 4 * words), BY_NAME["I8"], codes)
    factors = [Stored(part.name, part.shape, BY_NAME[part.dtype], part) for part in (scales, biases)]

    def values(start: int, stop: int) -> Bytes:
        scale, bias = (float_rows(part.rows(start, stop), part.type)[:, :, None] for part in factors)
        q = _codes(packed.rows(start, stop), bits).reshape(stop - start, -1, group)
        return np.ascontiguousarray((scale * q + bias).reshape(stop - start, columns)).view(np.uint8)

    return Computed(codes.name, (codes.shape[0], columns), F32, values, [packed, *factors])


def _codes(data: Bytes, bits: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """uint8 [n, bytes] as float32 [n, 8 * bytes / bits]: whole numbers, the lowest bit first."""
    stream = np.unpackbits(data, axis=1, bitorder="little").reshape(len(data), -1, bits)
    return np.asarray(stream @ (1 << np.arange(bits)), np.float32)
