"""What a NumPy implementation of a tensor type is: two functions on rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from loragraft.arrays import Bytes, Floats


@dataclass(frozen=True, slots=True)
class Codec:
    """Both directions of one type, on whole rows.

    `quantize(x, importance)`: float32 [rows, cols] and float32 [cols] or None -> uint8 [rows, row_bytes]; None asks
    for the reference's plain algorithm (`quantize_row_*_ref`), else its weighted one.
    `dequantize(data)`: uint8 [rows, row_bytes] -> float32 [rows, cols].
    """

    quantize: Callable[[Floats, Floats | None], Bytes]
    dequantize: Callable[[Bytes], Floats]
