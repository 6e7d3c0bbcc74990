"""The targets of `llama-quantize`, and two that it lacks (NVFP4): one row of facts per file type, no code.

Source: `llama_ftype` in llama.h (the numbers, written to `general.file_type`), `llama_ftype_get_default_type` in
llama-quant.cpp (the default types) and the usage text of tools/quantize (names, aliases, descriptions).
"""

from __future__ import annotations

from dataclasses import dataclass

from loragraft.errors import UnsupportedError
from loragraft.quants.types import BY_NAME as TYPES
from loragraft.quants.types import QuantType


@dataclass(frozen=True, slots=True)
class FileType:
    """A target: most weights become `default`, the mix's rules (`quants.mixes`) choose the exceptions."""

    name: str
    number: int
    default: QuantType
    description: str

    @property
    def copies(self) -> bool:
        """Whether every tensor is copied as it is (COPY)."""
        return self.name == "COPY"

    @property
    def is_float(self) -> bool:
        return self.default.is_float

    def __str__(self) -> str:
        return self.name


def _row(name: str, number: int, default: str, description: str) -> FileType:
    return FileType(name, number, TYPES[default], description)


_ROWS = (
    _row("F32", 0, "F32", "32 bits per weight"),
    _row("F16", 1, "F16", "16 bits per weight, range +-65504"),
    _row("BF16", 32, "BF16", "16 bits per weight, float32's range"),
    _row("Q8_0", 7, "Q8_0", "8.50 bits per weight, nearly lossless"),
    _row("Q6_K", 18, "Q6_K", "6.56 bits per weight"),
    _row("Q5_K_M", 17, "Q5_K", "5.5 bits and up: attention values and half of ffn_down in Q6_K"),
    _row("Q5_K_S", 16, "Q5_K", "5.50 bits per weight"),
    _row("Q5_0", 8, "Q5_0", "5.50 bits per weight, blocks of 32"),
    _row("Q5_1", 9, "Q5_1", "6.00 bits per weight, blocks of 32 with a minimum"),
    _row(
        "Q4_K_M",
        15,
        "Q4_K",
        "4.5 bits and up: attention values and half of ffn_down in Q6_K; the usual choice",
    ),
    _row("Q4_K_S", 14, "Q4_K", "4.5 bits and up: the first layers in Q5_K"),
    _row("Q4_0", 2, "Q4_0", "4.50 bits per weight, blocks of 32"),
    _row("Q4_1", 3, "Q4_1", "5.00 bits per weight, blocks of 32 with a minimum"),
    _row("IQ4_NL", 25, "IQ4_NL", "4.50 bits per weight, non-linear levels"),
    _row("IQ4_XS", 30, "IQ4_XS", "4.25 bits per weight, non-linear levels"),
    _row("NVFP4", 39, "NVFP4", "4.5 bits per weight with a scale per tensor: all linears, the rest in Q8_0"),
    _row("NVFP4_MLP", 39, "NVFP4", "NVFP4 in the feed-forward layers, the rest in Q8_0"),
    _row("MXFP4_MOE", 38, "MXFP4", "experts in MXFP4, everything else in Q8_0"),
    _row("Q3_K_L", 13, "Q3_K", "3.4 bits and up: attention and ffn_down in Q5_K"),
    _row("Q3_K_M", 12, "Q3_K", "3.4 bits and up: attention and ffn_down in Q4_K"),
    _row("Q3_K_S", 11, "Q3_K", "3.44 bits per weight"),
    _row("IQ3_M", 27, "IQ3_S", "3.66 bits per weight"),
    _row("IQ3_S", 26, "IQ3_S", "3.44 bits per weight"),
    _row("IQ3_XS", 22, "IQ3_S", "3.3 bits per weight; needs an importance matrix"),
    _row("IQ3_XXS", 23, "IQ3_XXS", "3.06 bits per weight; needs an importance matrix"),
    _row("Q2_K", 10, "Q2_K", "2.6 bits and up"),
    _row("Q2_K_S", 21, "Q2_K", "2.6 bits; needs an importance matrix"),
    _row("IQ2_M", 29, "IQ2_S", "2.7 bits per weight; needs an importance matrix"),
    _row("IQ2_S", 28, "IQ2_XS", "2.5 bits per weight; needs an importance matrix"),
    _row("IQ2_XS", 20, "IQ2_XS", "2.31 bits per weight; needs an importance matrix"),
    _row("IQ2_XXS", 19, "IQ2_XXS", "2.06 bits per weight; needs an importance matrix"),
    _row("Q2_0", 41, "Q2_0", "2.25 bits per weight, blocks of 64"),
    _row("IQ1_M", 31, "IQ1_M", "1.75 bits per weight; needs an importance matrix"),
    _row("IQ1_S", 24, "IQ1_S", "1.56 bits per weight; needs an importance matrix"),
    _row("TQ2_0", 37, "TQ2_0", "2.06 bits per weight, for weights trained ternary"),
    _row("TQ1_0", 36, "TQ1_0", "1.69 bits per weight, for weights trained ternary"),
    _row("Q1_0", 40, "Q1_0", "1.125 bits per weight, for weights trained binary"),
)

#: Keeps every tensor as it is; the file keeps its own `general.file_type`, so the number here is never written.
COPY = _row("COPY", 0, "F32", "copy every tensor as it is")

ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}

BY_NAME: dict[str, FileType] = {row.name: row for row in (*_ROWS, COPY)}
#: Of two targets with one number the first is meant.
BY_NUMBER: dict[int, FileType] = {row.number: row for row in reversed(_ROWS)}


def find_file_type(text: str) -> FileType | None:
    """The target called `text`: a name in any case, an alias, or llama.cpp's number of it."""
    name = text.strip().upper()
    if name.isascii() and name.isdigit():
        return BY_NUMBER.get(int(name[:9]))
    return BY_NAME.get(ALIASES.get(name, name))


def file_type(given: str | int | FileType) -> FileType:
    """The target called `given`, as `find_file_type` finds it. Raises `UnsupportedError` if there is none."""
    if isinstance(given, FileType):
        return given
    text = str(given)
    found = find_file_type(text)
    if found is None:
        from difflib import get_close_matches

        names = [*BY_NAME, *ALIASES]
        near = get_close_matches(text.strip().upper(), names, 1)
        raise UnsupportedError(
            text,
            "no such file type",
            expected="one of " + ", ".join(names),
            hint=f"did you mean {near[0]}?" if near else None,
        )
    return found
