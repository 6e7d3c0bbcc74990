"""Reads GGUF files, versions 2 and 3, little-endian.

The whole header is validated before any tensor is exposed: a file may lie about every number in it, so each length is
compared with the bytes that are left before anything is read or allocated. Layout: docs/gguf.md of ggml; limits as in
gguf.cpp of llama.cpp, except that gaps between tensors are allowed.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from itertools import pairwise
from math import prod
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from loragraft.arrays import Bytes
from loragraft.errors import GGUFError
from loragraft.formats.gguf.values import (
    DEFAULT_ALIGNMENT,
    MAX_DIMS,
    MAX_NAME,
    NUMPY_TYPES,
    Metadata,
    Value,
    ValueType,
)
from loragraft.formats.impostors import HEAD, refuse_impostor
from loragraft.formats.source import TensorSource
from loragraft.quants.types import BY_ID, QuantType
from loragraft.system import mapped
from loragraft.system.remote.paths import as_path

#: No header is larger than this: the largest tokenizers in use take about 20 MB.
MAX_HEADER = 1 << 27
#: Nor has one more elements in all its arrays, more arrays in arrays, metadata entries or tensors, or a longer text: an
#: object of Python's takes some 60 bytes, also for a string of one. The largest vocabularies in use have 300,000 tokens
#: and twice as many merges.
MAX_ELEMENTS, MAX_STRINGS, MAX_INNER_ARRAYS = 1 << 23, 1 << 21, 1 << 12
MAX_ENTRIES, MAX_TENSORS, MAX_TEXT = 1 << 16, 1 << 17, 1 << 24
#: Arrays of arrays are legal but unknown in practice; deeper ones than this serve only to exhaust the stack.
MAX_NESTING = 4

_SMALLEST_ENTRY = 8 + 1 + 4 + 1  # key length, one byte of key, type, one byte of value
_SMALLEST_TENSOR = 8 + 1 + 4 + 4 + 8  # name length, one byte of name, number of axes, type, offset

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_SCALARS: dict[ValueType, struct.Struct] = {
    ValueType.UINT8: struct.Struct("<B"),
    ValueType.INT8: struct.Struct("<b"),
    ValueType.UINT16: struct.Struct("<H"),
    ValueType.INT16: struct.Struct("<h"),
    ValueType.UINT32: _U32,
    ValueType.INT32: struct.Struct("<i"),
    ValueType.FLOAT32: struct.Struct("<f"),
    ValueType.BOOL: struct.Struct("<B"),
    ValueType.UINT64: _U64,
    ValueType.INT64: struct.Struct("<q"),
    ValueType.FLOAT64: struct.Struct("<d"),
}


class GGUFTensor(TensorSource):
    """A tensor of a mapped GGUF file."""

    def __init__(
        self,
        file: Path,
        name: str,
        shape: tuple[int, ...],
        type_: QuantType,
        offset: int,
        mapping: mapped.FileBytes,
    ) -> None:
        self.file = file
        """The file that holds it (one of several, if the model is split)."""
        self.name = name
        self.shape = shape
        self.type = type_
        self.offset = offset
        """Bytes from the file's beginning."""
        self._mapping = mapping

    @property
    def nbytes(self) -> int:
        return self.n_rows * self.row_bytes

    def data(self) -> Bytes:
        """All rows, as a read-only view of the mapped file: uint8 [n_rows, row_bytes]."""
        return self.rows(0, self.n_rows)

    def rows(self, start: int, stop: int) -> Bytes:
        if not 0 <= start <= stop <= self.n_rows:
            raise IndexError(f"rows [{start}, {stop}) of {self.name}, which has {self.n_rows}")
        row_bytes = self.row_bytes
        view = self._mapping.view(self.offset + start * row_bytes, (stop - start) * row_bytes)
        return view.reshape(stop - start, row_bytes)

    def prefetch(self, start: int, stop: int) -> None:
        self._mapping.prefetch(*self._span(start, stop))

    def release(self, start: int, stop: int) -> None:
        self._mapping.release(*self._span(start, stop))

    def _span(self, start: int, stop: int) -> tuple[int, int]:
        """Bytes of rows [start, stop), from the file's beginning."""
        return self.offset + start * self.row_bytes, self.offset + stop * self.row_bytes

    def __repr__(self) -> str:
        return f"GGUFTensor({self.name!r}, {self.shape}, {self.type})"


class GGUFFile:
    """One GGUF file: typed metadata and mapped tensors, both in the file's order.

    Usable as a context manager. Views that were handed out stay valid after `close`; the mapping ends with the last.
    """

    def __init__(
        self,
        path: Path,
        version: int,
        alignment: int,
        metadata: Metadata,
        tensors: dict[str, GGUFTensor],
        data_start: int,
    ) -> None:
        self.path = path
        self.version = version
        self.alignment = alignment
        self.metadata = metadata
        self.tensors = tensors
        self.data_start = data_start
        """Where the header, padding included, ends: bytes from the file's beginning."""

    @classmethod
    def open(cls, path: Path | str) -> GGUFFile:
        """Map `path` and validate its header. Raises `GGUFError`."""
        path = as_path(path)
        return _HeaderParser(path, mapped.map_file(path, GGUFError)).parse()

    @staticmethod
    def kind(path: Path) -> str:
        """`general.type` of the file at `path`; of one without it "model" if it names an architecture, else "". No more
        of the header is read than up to that key. Raises `GGUFError`."""
        return _HeaderParser(path, mapped.map_file(path, GGUFError)).kind()

    def close(self) -> None:
        """Forget the tensors, so that the mapping can end."""
        self.tensors = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _HeaderParser:
    """A cursor over the header; every read is checked against `limit` first."""

    def __init__(self, path: Path, mapping: mapped.FileBytes) -> None:
        self.path = path
        self.file = mapping
        self.size = len(mapping)
        self.limit = min(self.size, MAX_HEADER)
        self.mapping = mapping.head(self.limit)
        self.filled = mapping.fill(self.mapping, 0, min(self.limit, 16))
        """How much of it is there: of a remote file the rest follows as it is needed."""
        self.position = 0
        self.elements = self.n_strings = self.inner_arrays = 0

    def parse(self) -> GGUFFile:
        version = self.preamble()
        n_tensors = self.number(_U64, "the number of tensors")
        n_entries = self.number(_U64, "the number of metadata entries")
        self.need(n_entries * _SMALLEST_ENTRY, f"{n_entries} metadata entries")
        self.bound("metadata entries", n_entries, MAX_ENTRIES)
        metadata = self.metadata(n_entries)
        alignment = self.alignment(metadata)
        self.need(n_tensors * _SMALLEST_TENSOR, f"{n_tensors} tensors")
        self.bound("tensors", n_tensors, MAX_TENSORS)
        facts = [self.tensor_facts(index) for index in range(n_tensors)]
        data_start = -(-self.position // alignment) * alignment
        return GGUFFile(
            self.path, version, alignment, metadata, self.tensors(facts, data_start, alignment), data_start
        )

    def kind(self) -> str:
        self.preamble()
        self.number(_U64, "the number of tensors")
        found = ""
        for index in range(self.number(_U64, "the number of metadata entries")):
            key = self.string(f"the key of metadata entry {index}")
            value = self.value(self.value_type(key), key)
            if key == "general.type" and value.type is ValueType.STRING:
                return str(value.data)
            if key == "general.architecture":
                found = "model"
        return found

    # ---- reading ----

    def fail(self, problem: str, **facts: Any) -> GGUFError:
        return GGUFError(self.path, problem, **facts)

    def need(self, count: int, what: str) -> None:
        """Assure that `count` more bytes, which hold `what`, lie within the file."""
        left = self.limit - self.position
        if count <= left:
            if self.position + count > self.filled:
                self.filled = self.file.fill(self.mapping, self.filled, self.position + count)
            return
        if self.limit < self.size:
            raise self.fail(
                f"the header is too large at {what}", found=f"{count} bytes", expected=f"at most {MAX_HEADER}"
            )
        raise self.fail(
            f"the file is truncated, or its header is wrong about {what}",
            found=f"{left} bytes left at offset {self.position}",
            expected=f"at least {count}",
        )

    def bound(self, what: str, count: int, most: int) -> None:
        if count > most:
            raise self.fail(f"there are too many {what}", found=count, expected=f"at most {most}")

    def number(self, layout: struct.Struct, what: str) -> Any:
        self.need(layout.size, what)
        (value,) = layout.unpack_from(self.mapping, self.position)
        self.position += layout.size
        return value

    def string(self, what: str) -> str:
        length = self.number(_U64, f"the length of {what}")
        self.need(length, what)
        self.bound(f"bytes in {what}", length, MAX_TEXT)
        text = self.mapping[self.position : self.position + length]
        self.position += length
        return text.decode("utf-8", "surrogateescape")

    def preamble(self) -> int:
        magic = self.mapping[:4]
        if magic != b"GGUF":
            refuse_impostor(self.path, self.mapping[:HEAD], GGUFError)
            # A safetensors file: the length of its header, then the header, a JSON object.
            hint = (
                "name the folder that a safetensors file lies in" if self.mapping[5:9] == b"\0\0\0{" else None
            )
            raise self.fail("not a GGUF file", found=f"magic {magic!r}", expected=repr(b"GGUF"), hint=hint)
        self.position = 4
        version: int = self.number(_U32, "the version")
        if version & 0xFFFF == 0 and version:
            raise self.fail(
                "a big-endian GGUF file", hint="convert it with gguf_convert_endian of the gguf package"
            )
        if version not in (2, 3):
            raise self.fail("unsupported GGUF version", found=version, expected="2 or 3")
        return version

    # ---- metadata ----

    def metadata(self, count: int) -> Metadata:
        entries: Metadata = {}
        for index in range(count):
            key = self.string(f"the key of metadata entry {index}")
            if not key:
                raise self.fail(f"metadata entry {index} has an empty key")
            if key in entries:
                raise self.fail("duplicate metadata key", found=repr(key))
            entries[key] = self.value(self.value_type(key), key)
        return entries

    def value_type(self, key: str) -> ValueType:
        number = self.number(_U32, f"the type of {key!r}")
        try:
            return ValueType(number)
        except ValueError:
            raise self.fail(f"unknown value type of {key!r}", found=number, expected="0 to 12") from None

    def value(self, kind: ValueType, key: str, depth: int = 0) -> Value:
        if kind is ValueType.STRING:
            return Value(kind, self.string(f"the value of {key!r}"))
        if kind is ValueType.ARRAY:
            return self.array(key, depth + 1)
        number = self.number(_SCALARS[kind], f"the value of {key!r}")
        return Value(kind, bool(number) if kind is ValueType.BOOL else number)

    def array(self, key: str, depth: int) -> Value:
        if depth > MAX_NESTING:
            raise self.fail(
                f"the arrays of {key!r} are nested too deeply", expected=f"at most {MAX_NESTING} levels"
            )
        item = self.value_type(key)
        count = self.number(_U64, f"the length of {key!r}")
        what = f"the {count} elements of {key!r}"
        data: Any
        self.elements += count
        if item is ValueType.STRING:
            self.need(count * 8, what)
            self.n_strings += count
            self.bound("strings in arrays", self.n_strings, MAX_STRINGS)
            data = self.strings(count, what)
        elif item is ValueType.ARRAY:
            self.need(count * 12, what)
            self.inner_arrays += count
            self.bound("arrays in arrays", self.inner_arrays, MAX_INNER_ARRAYS)
            data = [self.array(key, depth + 1) for _ in range(count)]
        else:
            dtype = NUMPY_TYPES[item]
            self.need(count * dtype.itemsize, what)
            self.bound("elements in arrays", self.elements, MAX_ELEMENTS)
            data = np.frombuffer(self.mapping, dtype, count, self.position).copy()
            if item is ValueType.BOOL:
                data = (data != 0).astype(dtype)
            self.position += data.nbytes
        return Value(ValueType.ARRAY, data, item)

    def strings(self, count: int, what: str) -> list[str]:
        """`count` strings. Written for speed: a vocabulary has some 100,000 of them."""
        mapping, position, there = self.mapping, self.position, min(self.filled, self.limit)
        length_at: Callable[[mmap.mmap, int], tuple[int]] = _U64.unpack_from
        texts = []
        for _ in range(count):
            if position + 8 > there:
                self.position = position
                self.need(8, what)
                there = min(self.filled, self.limit)
            start = position + 8
            position = start + length_at(mapping, position)[0]
            if position > there:
                self.position = start
                self.need(position - start, what)
                there = min(self.filled, self.limit)
            texts.append(mapping[start:position].decode("utf-8", "surrogateescape"))
        self.position = position
        return texts

    def alignment(self, metadata: Metadata) -> int:
        value = metadata.get("general.alignment")
        if value is None:
            return DEFAULT_ALIGNMENT
        if value.type is not ValueType.UINT32:
            raise self.fail("general.alignment has a wrong type", found=value.type.name, expected="UINT32")
        alignment: int = value.data
        if alignment == 0 or alignment & (alignment - 1):
            raise self.fail("general.alignment is wrong", found=alignment, expected="a power of two")
        return alignment

    # ---- tensors ----

    def tensor_facts(self, index: int) -> tuple[str, tuple[int, ...], QuantType, int]:
        """Name, shape (NumPy's order), type, and offset from the beginning of the data."""
        name = self.string(f"the name of tensor {index}")
        subject = f"tensor {name!r}"
        if not 0 < len(name.encode("utf-8", "surrogateescape")) <= MAX_NAME:
            raise self.fail(f"{subject} has a name too long or empty", expected=f"1 to {MAX_NAME} bytes")
        n_dims = self.number(_U32, f"the number of axes of {subject}")
        if n_dims > MAX_DIMS:
            raise self.fail(f"{subject} has too many axes", found=n_dims, expected=f"at most {MAX_DIMS}")
        sizes = [self.number(_U64, f"the shape of {subject}") for _ in range(n_dims)] or [1]
        shape = tuple(reversed(sizes))
        if 0 in shape:
            raise self.fail(f"{subject} has no elements", found=f"shape {shape}")
        type_id = self.number(_U32, f"the type of {subject}")
        type_ = BY_ID.get(type_id)
        if type_ is None:
            raise self.fail(
                f"{subject} has an unknown type",
                found=f"number {type_id}",
                hint="was it made by a newer tool?",
            )
        if shape[-1] % type_.block:
            raise self.fail(
                f"the rows of {subject} are not whole blocks of {type_}",
                found=f"{shape[-1]} columns",
                expected=f"a multiple of {type_.block}",
            )
        return name, shape, type_, self.number(_U64, f"the offset of {subject}")

    def tensors(
        self, facts: list[tuple[str, tuple[int, ...], QuantType, int]], data_start: int, alignment: int
    ) -> dict[str, GGUFTensor]:
        tensors: dict[str, GGUFTensor] = {}
        spans: list[tuple[int, int, str]] = []
        for name, shape, type_, relative in facts:
            if name in tensors:
                raise self.fail("duplicate tensor name", found=repr(name))
            if relative % alignment:
                raise self.fail(
                    f"tensor {name!r} is not aligned",
                    found=f"offset {relative}",
                    expected=f"a multiple of {alignment}",
                )
            start = data_start + relative
            end = start + prod(shape[:-1]) * type_.row_bytes(shape[-1])
            if end > self.size:
                raise self.fail(
                    f"tensor {name!r} does not fit in the file: it is truncated, or its header is wrong",
                    found=f"{self.size} bytes",
                    expected=f"at least {end} for {type_} {list(shape)} at offset {start}",
                )
            spans.append((start, end, name))
            tensors[name] = GGUFTensor(self.path, name, shape, type_, start, self.file)
        spans.sort()
        for (_, end, before), (start, _, after) in pairwise(spans):
            if start < end:
                raise self.fail(
                    f"tensors {before!r} and {after!r} overlap", found=f"{end - start} bytes shared"
                )
        return tensors
