"""BitNet's weights: three levels, -1, 0 and 1, times one number.

Packed (`quantization_mode` offline): `X.weight` uint8 [out/4, in] has the rows in four parts, one after the other: bits
2k and 2k + 1 of a byte are a level of part k, plus 1. `X.weight_scale` is what they are multiplied by in an
AutoBitLinear, and divided by in a BitLinear. Masters (online) are floats, rounded as they are used: the number is the
mean of their absolute values. Source: transformers, integrations/bitnet.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from loragraft.arrays import Bytes
from loragraft.errors import CheckpointError, UnsupportedError
from loragraft.formats.checkpoint import CheckpointTensor
from loragraft.formats.source import TensorSource
from loragraft.formats.views import Computed, Stored, float_rows, widened
from loragraft.quants.reference import quantize
from loragraft.quants.types import BY_NAME, F32

METHOD = "bitnet"
_PARTS = 4
_LINEAR_CLASSES, _MODES = ("bitlinear", "autobitlinear"), ("offline", "online")
_LEAST = 1e-5
"""The mean of a master's absolute values is at least this."""


def check_bitnet(path: Path, settings: Mapping[str, Any]) -> None:
    """Raises UnsupportedError for settings of `quantization_config` that are not read."""
    for key, known in (
        ("linear_class", (None, *_LINEAR_CLASSES)),
        ("quantization_mode", (None, *_MODES)),
        ("use_rms_norm", (None, False)),
        ("modules_to_not_convert", (None, [], ["lm_head"])),
    ):
        if settings.get(key) not in known:
            raise UnsupportedError(
                path,
                f"an unsupported quantization: bitnet's {key}",
                found=repr(settings[key])[:80],
                expected=" or ".join(repr(one) for one in known if one is not None),
            )


def is_online(settings: Mapping[str, Any]) -> bool:
    """Whether the weights are masters, which an AutoBitLinear rounds. A BitLinear has packed ones only."""
    return (
        settings.get("quant_method"),
        settings.get("linear_class"),
        settings.get("quantization_mode"),
    ) == (
        METHOD,
        "autobitlinear",
        "online",
    )


def is_linear(name: str, shape: tuple[int, ...]) -> bool:
    """Whether transformers makes an AutoBitLinear of it: every linear but the output."""
    return len(shape) == 2 and ".layers." in name and name.endswith(".weight")


def packed_weight(
    path: Path, codes: CheckpointTensor, scale: float | None, settings: Mapping[str, Any]
) -> TensorSource:
    """The weight [out, in] in float32. Raises CheckpointError for a matrix or a scale that does not fit."""
    if len(codes.shape) != 2 or scale is None:
        raise CheckpointError(
            path,
            f"{codes.name} is not a weight of BitNet",
            found=f"{codes.dtype} {codes.shape}, {'no scale' if scale is None else 'a scale'}",
            expected=f"U8 [out/{_PARTS}, in], and {codes.name}_scale",
        )
    part, columns = codes.shape
    packed = Stored(codes.name, codes.shape, BY_NAME["I8"], codes)
    times = settings.get("linear_class") == "autobitlinear"
    unit = np.float32(scale) if times else np.float32(1) / np.float32(scale)
    levels = (np.arange(_PARTS, dtype=np.float32) - 1) * unit

    def compute(start: int, stop: int) -> Bytes:
        rows = np.empty((stop - start, columns), np.float32)
        while start < stop:
            place, first = divmod(start, part)
            count = min(stop - start, part - first)
            taken = packed.rows(first, first + count).view(np.uint8)
            rows[len(rows) - (stop - start) :][:count] = levels[taken >> (2 * place) & 3]
            start += count
        return rows.view(np.uint8)

    return Computed(codes.name, (_PARTS * part, columns), F32, compute, [])


def rounded_weight(master: TensorSource) -> TensorSource:
    """The weight that an AutoBitLinear computes with, in its master's type. It is read once more than others, for its
    mean, which is rounded once (torch's, a sum in float32, may differ by a unit in the last place)."""
    wide = widened(master)
    inverse = _inverse(wide)

    def compute(start: int, stop: int) -> Bytes:
        rows = wide.rows(start, stop).view(np.float32)
        levels = np.clip(np.rint(rows * inverse()), -1, 1)
        return quantize(np.ascontiguousarray(levels / inverse()), master.type)

    return Computed(master.name, master.shape, master.type, compute, [master])


def _inverse(wide: TensorSource) -> Callable[[], np.float32]:
    step = max(1, (1 << 22) // wide.row_bytes)

    @cache
    def inverse() -> np.float32:
        total = 0.0
        for start in range(0, wide.n_rows, step):
            rows = float_rows(wide.rows(start, min(start + step, wide.n_rows)), F32)
            total += float(np.abs(rows).sum(dtype=np.float64))
        mean = np.float32(total / (wide.n_rows * wide.columns))
        return np.float32(1) / max(mean, np.float32(_LEAST))

    return inverse
