"""Writes GGUF files, version 3, little-endian, the bytes that llama.cpp's writer (gguf.cpp) would write.

The whole layout is computed first, so that any worker can write any part of any tensor at its final place.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from loragraft.errors import GGUFError
from loragraft.formats.gguf.values import DEFAULT_ALIGNMENT, MAX_DIMS, MAX_NAME, NUMPY_TYPES, Value, ValueType
from loragraft.formats.layout import FileLayout, TensorWriter
from loragraft.quants.types import QuantType

VERSION = 3


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor to be written: `shape` in NumPy's order.

    Leading axes of length 1 are not stored, as ggml does not tell apart (1, n) and (n,).
    """

    name: str
    shape: tuple[int, ...]
    type: QuantType

    @property
    def nbytes(self) -> int:
        return prod(self.shape[:-1]) * self.type.row_bytes(self.shape[-1])


class GGUFLayout(FileLayout):
    """Where everything lies in a GGUF file that is to be written."""

    @staticmethod
    def plan(metadata: Mapping[str, Value], specs: Sequence[TensorSpec]) -> GGUFLayout:
        """Lay out a file with `metadata` and the tensors `specs`, in the given orders.

        The alignment is that of `general.alignment` in the metadata, or 32. Raises `GGUFError` for what no GGUF file
        can hold: a repeated, empty or too long name, more than 4 axes, a wrong alignment.
        """
        alignment = _alignment(metadata)
        parts = [b"GGUF", struct.pack("<IQQ", VERSION, len(specs), len(metadata))]
        for key, value in metadata.items():
            parts += [_string(key), struct.pack("<I", value.type), *_value(key, value)]
        relative: dict[str, int] = {}
        sizes: dict[str, int] = {}
        end = 0
        for spec in specs:
            _check(spec, sizes)
            shape = _stored_shape(spec.shape)
            parts += [
                _string(spec.name),
                struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), spec.type.id, end),
            ]
            relative[spec.name], sizes[spec.name] = end, spec.nbytes
            end = _padded(end + spec.nbytes, alignment)
        header = b"".join(parts)
        header = header.ljust(_padded(len(header), alignment), b"\0")
        offsets = {name: len(header) + offset for name, offset in relative.items()}
        return GGUFLayout(header, offsets, sizes, len(header) + end)


class GGUFWriter(TensorWriter):
    """A GGUF file under way: see `TensorWriter`."""

    def __init__(
        self,
        path: Path | str,
        metadata: Mapping[str, Value],
        specs: Sequence[TensorSpec],
        *,
        inputs: Iterable[Path | str] = (),
        resume: bool = False,
    ) -> None:
        super().__init__(path, GGUFLayout.plan(metadata, specs), inputs=inputs, resume=resume)


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def _alignment(metadata: Mapping[str, Value]) -> int:
    value = metadata.get("general.alignment", Value.u32(DEFAULT_ALIGNMENT))
    alignment = value.data
    if value.type is not ValueType.UINT32 or alignment <= 0 or alignment & (alignment - 1):
        raise GGUFError(
            "general.alignment", "is wrong", found=alignment, expected="a power of two, as UINT32"
        )
    return int(alignment)


def _stored_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    first = next((axis for axis, length in enumerate(shape) if length != 1), len(shape) - 1)
    return shape[max(first, 0) :] or (1,)


def _check(spec: TensorSpec, earlier: Mapping[str, int]) -> None:
    subject = f"tensor {spec.name!r}"
    if spec.name in earlier:
        raise GGUFError(subject, "two tensors have this name")
    if not 0 < len(spec.name.encode("utf-8", "surrogateescape")) <= MAX_NAME:
        raise GGUFError(subject, "its name is too long or empty", expected=f"1 to {MAX_NAME} bytes")
    if len(_stored_shape(spec.shape)) > MAX_DIMS or 0 in spec.shape:
        raise GGUFError(
            subject, "GGUF cannot store its shape", found=spec.shape, expected=f"1 to {MAX_DIMS} axes"
        )


def _string(text: str) -> bytes:
    try:
        data = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise GGUFError(
            repr(text)[:80],
            "a string for the metadata holds half of a surrogate pair, which is not a character",
        ) from None
    return struct.pack("<Q", len(data)) + data


def _value(key: str, value: Value) -> list[bytes]:
    """The bytes of a value, without its type."""
    if value.type is ValueType.STRING:
        return [_string(value.data)]
    if value.type is not ValueType.ARRAY:
        return [_numbers(key, value.data, value.type)]
    if value.item is None:
        raise GGUFError(repr(key), "an array without an element type")
    parts = [struct.pack("<IQ", value.item, len(value.data))]
    if value.item is ValueType.STRING:
        parts += map(_string, value.data)
    elif value.item is ValueType.ARRAY:
        for inner in value.data:
            parts += _value(key, inner)
    else:
        parts.append(_numbers(key, value.data, value.item))
    return parts


def _numbers(key: str, data: Any, kind: ValueType) -> bytes:
    if kind is ValueType.BOOL:
        data = np.asarray(data) != 0
    try:
        with np.errstate(over="ignore"):
            return np.asarray(data, dtype=NUMPY_TYPES[kind]).tobytes()
    except (OverflowError, TypeError, ValueError):
        raise GGUFError(repr(key), f"the value does not fit {kind.name}", found=data) from None
