"""Facts about ggml's tensor types: one row per type, no code.

Source: ggml.h and ggml-common.h of llama.cpp. `gguf` 0.19.0 does not know Q2_0, so the table is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from loragraft.errors import UnsupportedError


class Family(StrEnum):
    """Which module implements a type."""

    FLOAT = "float"
    LEGACY = "legacy"
    K = "k"
    IQ = "iq"
    TERNARY = "ternary"
    FP4 = "fp4"
    DATA = "data"
    """No weights, and no kernels: integers, and F64."""


@dataclass(frozen=True, slots=True)
class QuantType:
    """One tensor type: `block` weights are stored in `bytes` bytes; `id` is ggml's number.

    `scales`: where a block keeps the F16 numbers that all its weights depend on, as offsets in bytes: a file in which
    they are infinite or NaN is refused. None: they are no F16, or in pieces, and the weights themselves are looked at.
    """

    name: str
    id: int
    block: int
    bytes: int
    family: Family
    scales: tuple[int, ...] | None = None

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.bytes / self.block

    @property
    def is_float(self) -> bool:
        return self.family is Family.FLOAT

    @property
    def is_quantized(self) -> bool:
        return self.holds_weights and not self.is_float

    @property
    def holds_weights(self) -> bool:
        return self.family is not Family.DATA

    def row_bytes(self, columns: int) -> int:
        """Bytes of a row of `columns` weights, which must be a multiple of the block."""
        if columns % self.block:
            raise UnsupportedError(
                self.name,
                "a row must be a whole number of blocks",
                found=f"{columns} columns",
                expected=f"a multiple of {self.block}",
            )
        return columns // self.block * self.bytes

    def __str__(self) -> str:
        return self.name


_ROWS = (
    QuantType("F32", 0, 1, 4, Family.FLOAT),
    QuantType("F16", 1, 1, 2, Family.FLOAT),
    QuantType("BF16", 30, 1, 2, Family.FLOAT),
    QuantType("Q1_0", 41, 128, 18, Family.LEGACY, (0,)),
    QuantType("Q2_0", 42, 64, 18, Family.LEGACY, (0,)),
    QuantType("Q4_0", 2, 32, 18, Family.LEGACY, (0,)),
    QuantType("Q4_1", 3, 32, 20, Family.LEGACY, (0, 2)),
    QuantType("Q5_0", 6, 32, 22, Family.LEGACY, (0,)),
    QuantType("Q5_1", 7, 32, 24, Family.LEGACY, (0, 2)),
    QuantType("Q8_0", 8, 32, 34, Family.LEGACY, (0,)),
    QuantType("Q2_K", 10, 256, 84, Family.K, (80, 82)),
    QuantType("Q3_K", 11, 256, 110, Family.K, (108,)),
    QuantType("Q4_K", 12, 256, 144, Family.K, (0, 2)),
    QuantType("Q5_K", 13, 256, 176, Family.K, (0, 2)),
    QuantType("Q6_K", 14, 256, 210, Family.K, (208,)),
    QuantType("IQ1_S", 19, 256, 50, Family.IQ, (0,)),
    QuantType("IQ1_M", 29, 256, 56, Family.IQ),
    QuantType("IQ2_XXS", 16, 256, 66, Family.IQ, (0,)),
    QuantType("IQ2_XS", 17, 256, 74, Family.IQ, (0,)),
    QuantType("IQ2_S", 22, 256, 82, Family.IQ, (0,)),
    QuantType("IQ3_XXS", 18, 256, 98, Family.IQ, (0,)),
    QuantType("IQ3_S", 21, 256, 110, Family.IQ, (0,)),
    QuantType("IQ4_NL", 20, 32, 18, Family.IQ, (0,)),
    QuantType("IQ4_XS", 23, 256, 136, Family.IQ, (0,)),
    QuantType("TQ1_0", 34, 256, 54, Family.TERNARY, (52,)),
    QuantType("TQ2_0", 35, 256, 66, Family.TERNARY, (64,)),
    QuantType("MXFP4", 39, 32, 17, Family.FP4),
    QuantType("NVFP4", 40, 64, 36, Family.FP4, ()),  # its scales have no infinity, and NaN is read as 0
    QuantType("I8", 24, 1, 1, Family.DATA),
    QuantType("I16", 25, 1, 2, Family.DATA),
    QuantType("I32", 26, 1, 4, Family.DATA),
    QuantType("I64", 27, 1, 8, Family.DATA),
    QuantType("F64", 28, 1, 8, Family.DATA),
)

BY_NAME: dict[str, QuantType] = {row.name: row for row in _ROWS}
BY_ID: dict[int, QuantType] = {row.id: row for row in _ROWS}

F32, F16 = BY_NAME["F32"], BY_NAME["F16"]


def by_name(name: str) -> QuantType:
    """The type called `name` (any case)."""
    try:
        return BY_NAME[name.upper()]
    except KeyError:
        raise UnsupportedError(name, "no such tensor type", expected="one of " + ", ".join(BY_NAME)) from None
