"""Typed metadata values of a GGUF file; the type travels with the value, so a file can be written back as read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np


class ValueType(IntEnum):
    """What a metadata value is, as the file numbers it (`gguf_type` of gguf.h)."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


class TokenType(IntEnum):
    """What a token is, in `tokenizer.ggml.token_type` (`llama_token_type` of llama.h)."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


#: `general.quantization_version`: the layout of ggml's block types.
QUANTIZATION_VERSION = 2
#: ggml allows no more axes than this.
MAX_DIMS = 4
#: Bytes of a tensor's name: ggml's GGML_MAX_NAME less its terminator; llama.cpp refuses a file with a longer one.
MAX_NAME = 63
#: Of tensor data, in bytes, where the metadata does not say another in `general.alignment`.
DEFAULT_ALIGNMENT = 32

#: NumPy types of the fixed-size value types.
NUMPY_TYPES: dict[ValueType, np.dtype[Any]] = {
    ValueType.UINT8: np.dtype("<u1"),
    ValueType.INT8: np.dtype("<i1"),
    ValueType.UINT16: np.dtype("<u2"),
    ValueType.INT16: np.dtype("<i2"),
    ValueType.UINT32: np.dtype("<u4"),
    ValueType.INT32: np.dtype("<i4"),
    ValueType.FLOAT32: np.dtype("<f4"),
    ValueType.BOOL: np.dtype("<u1"),
    ValueType.UINT64: np.dtype("<u8"),
    ValueType.INT64: np.dtype("<i8"),
    ValueType.FLOAT64: np.dtype("<f8"),
}


@dataclass(frozen=True, slots=True)
class Value:
    """One value: `data` is a bool, int, float or str, or for an array a list of those (a NumPy array if they are
    numbers, a list of Values if they are arrays) whose element type is `item`. Strings that are not UTF-8 keep their
    bytes by `surrogateescape`."""

    type: ValueType
    data: Any
    item: ValueType | None = None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Value):
            return NotImplemented
        if (self.type, self.item) != (other.type, other.item):
            return False
        if isinstance(self.data, np.ndarray):
            return np.array_equal(self.data, other.data)
        return bool(self.data == other.data)

    @staticmethod
    def u32(number: int) -> Value:
        return Value(ValueType.UINT32, number)

    @staticmethod
    def i32(number: int) -> Value:
        return Value(ValueType.INT32, number)

    @staticmethod
    def u16(number: int) -> Value:
        return Value(ValueType.UINT16, number)

    @staticmethod
    def f32(number: float) -> Value:
        return Value(ValueType.FLOAT32, float(np.float32(number)))

    @staticmethod
    def boolean(flag: bool) -> Value:
        return Value(ValueType.BOOL, flag)

    @staticmethod
    def string(text: str) -> Value:
        return Value(ValueType.STRING, text)

    @staticmethod
    def strings(texts: Sequence[str]) -> Value:
        return Value(ValueType.ARRAY, list(texts), ValueType.STRING)

    @staticmethod
    def numbers(item: ValueType, numbers: Sequence[int] | Sequence[float]) -> Value:
        return Value(ValueType.ARRAY, np.asarray(numbers, dtype=NUMPY_TYPES[item]), item)


Metadata = dict[str, Value]
