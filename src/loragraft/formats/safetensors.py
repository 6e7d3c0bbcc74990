"""Reads and writes safetensors files.

As in huggingface/safetensors, the whole header is validated before any tensor is exposed: its size is capped, each
tensor's bytes match its dtype and shape, and the tensors cover the file's data exactly, without holes or overlaps.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from loragraft.arrays import Bytes
from loragraft.errors import CheckpointError, UnsupportedError, advising
from loragraft.formats.impostors import HEAD, refuse_impostor
from loragraft.formats.jsonfile import parse_json
from loragraft.formats.layout import FileLayout, TensorWriter
from loragraft.system import mapped
from loragraft.system.remote.paths import as_path

_AGAIN = "it was not copied or downloaded whole: compare its size with the original's, and take it again"
#: As in huggingface/safetensors.
MAX_HEADER = 100_000_000

#: Bits of one element, by dtype, in the order of their alignment (safetensors/src/tensor.rs).
DTYPE_BITS: dict[str, int] = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}

_NUMPY_TYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "C64": np.dtype("<c8"),
}


class CheckpointTensor:
    """A tensor of a mapped safetensors file. `shape` may be empty: a scalar."""

    def __init__(
        self,
        file: Path,
        name: str,
        dtype: str,
        shape: tuple[int, ...],
        offset: int,
        nbytes: int,
        mapping: mapped.FileBytes,
    ) -> None:
        self.file = file
        """The file that holds it (one of several, if the checkpoint is sharded)."""
        self.name = name
        self.dtype = dtype
        """As safetensors names it: one of `DTYPE_BITS`."""
        self.shape = shape
        self.offset = offset
        """Bytes from the file's beginning."""
        self.nbytes = nbytes
        self._mapping = mapping

    def data(self) -> Bytes:
        """Its bytes, as a read-only view of the mapped file: uint8 [nbytes]."""
        return self._mapping.view(self.offset, self.nbytes)

    def part(self, start: int, stop: int) -> Bytes:
        """Bytes [start, stop) of it: uint8 [stop - start]."""
        return self._mapping.view(self.offset + start, stop - start)

    def prefetch(self, start: int, stop: int) -> None:
        """Bytes [start, stop) of it will be asked for soon: the system may read them ahead."""
        self._mapping.prefetch(self.offset + start, self.offset + stop)

    def release(self, start: int, stop: int) -> None:
        """Bytes [start, stop) of it will not be asked for again soon: they may leave this process's memory."""
        self._mapping.release(self.offset + start, self.offset + stop)

    def array(self) -> npt.NDArray[Any]:
        """Its elements in its shape, as a read-only view of the mapped file.

        Raises `UnsupportedError` for a dtype that NumPy lacks (BF16, F8_*, ...); read its `data` instead.
        """
        dtype = _NUMPY_TYPES.get(self.dtype)
        if dtype is None:
            raise UnsupportedError(self.name, "NumPy has no such dtype", found=self.dtype)
        return self.data().view(dtype).reshape(self.shape)

    def __repr__(self) -> str:
        return f"CheckpointTensor({self.name!r}, {self.dtype}, {self.shape})"


class SafetensorsFile:
    """One safetensors file: its tensors by name, in the order of their data."""

    def __init__(self, path: Path, metadata: dict[str, str], tensors: dict[str, CheckpointTensor]) -> None:
        self.path = path
        self.metadata = metadata
        """The free-form `__metadata__`."""
        self.tensors = tensors

    @classmethod
    def open(cls, path: Path | str) -> SafetensorsFile:
        """Map `path` and validate its header. Raises `CheckpointError`."""
        path = as_path(path)
        mapping = mapped.map_file(path, CheckpointError)
        refuse_impostor(path, mapping[:HEAD], CheckpointError)
        with advising(_AGAIN, CheckpointError):
            return cls._read(path, mapping)

    @classmethod
    def _read(cls, path: Path, mapping: mapped.FileBytes) -> SafetensorsFile:
        header, data_start = _read_header(path, mapping)
        metadata = _read_metadata(path, header.pop("__metadata__", {}))
        entries = sorted(
            ((*_read_entry(path, name, entry), name) for name, entry in header.items()), key=lambda e: e[:2]
        )
        tensors = {}
        expected = 0
        for start, end, dtype, shape, name in entries:
            if start != expected:
                raise CheckpointError(
                    path,
                    f"the data of tensor {name!r} leave a gap or overlap another tensor's",
                    found=f"offset {start}",
                    expected=expected,
                )
            tensors[name] = CheckpointTensor(
                path, name, dtype, shape, data_start + start, end - start, mapping
            )
            expected = end
        if data_start + expected != len(mapping):
            raise CheckpointError(
                path,
                "the file is truncated, or longer than its header says",
                found=f"{len(mapping)} bytes",
                expected=data_start + expected,
            )
        return cls(path, metadata, tensors)


def _read_header(path: Path, mapping: mapped.FileBytes) -> tuple[dict[str, Any], int]:
    """The header's JSON object and where the data begin."""
    if len(mapping) < 8:
        raise CheckpointError(path, "too short for a safetensors file", found=f"{len(mapping)} bytes")
    length = int.from_bytes(mapping[:8], "little")
    if length > MAX_HEADER:
        raise CheckpointError(
            path,
            "not a safetensors file, or its header is too large",
            found=f"{length} bytes",
            expected="<= 100 MB",
        )
    if 8 + length > len(mapping):
        raise CheckpointError(
            path,
            "the file is truncated within its header",
            found=f"{len(mapping)} bytes",
            expected=f"at least {8 + length}",
        )
    return parse_json(mapping[8 : 8 + length], path, "the safetensors header", CheckpointError), 8 + length


def _read_metadata(path: Path, entry: object) -> dict[str, str]:
    if not isinstance(entry, dict) or not all(isinstance(value, str) for value in entry.values()):
        raise CheckpointError(path, "__metadata__ is not a map of strings to strings")
    return entry


def _read_entry(path: Path, name: str, entry: object) -> tuple[int, int, str, tuple[int, ...]]:
    """Start, end (relative to the data), dtype and shape of a tensor, checked against each other."""
    subject = f"tensor {name!r}"
    if not name.isprintable():
        raise CheckpointError(path, f"{subject} has unprintable characters in its name")
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(path, f"{subject} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise CheckpointError(path, f"{subject} has an unknown dtype", found=repr(dtype))
    if not _is_sizes(shape):
        raise CheckpointError(path, f"{subject} has a wrong shape", found=_brief(shape))
    if not _is_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(path, f"{subject} has wrong data_offsets", found=_brief(offsets))
    bits = prod(shape) * DTYPE_BITS[dtype]
    if bits != 8 * (offsets[1] - offsets[0]):
        raise CheckpointError(
            path,
            f"the data of {subject} have the wrong length",
            found=f"{offsets[1] - offsets[0]} bytes",
            expected=f"{bits // 8} for {dtype} {shape}",
        )
    return offsets[0], offsets[1], dtype, tuple(shape)


def _is_sizes(value: object) -> bool:
    """Whether it is a list of integers in 0 .. 2^63-1, and not more of them than any tensor has axes."""
    return (
        isinstance(value, list)
        and len(value) <= 32
        and all(type(number) is int and 0 <= number < 1 << 63 for number in value)
    )


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


@dataclass(frozen=True, slots=True)
class SafetensorsSpec:
    """A tensor to be written; `dtype` is one of `DTYPE_BITS`."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * DTYPE_BITS[self.dtype] // 8


class SafetensorsWriter(TensorWriter):
    """A safetensors file under way: see `TensorWriter`."""

    def __init__(
        self,
        path: Path | str,
        specs: Sequence[SafetensorsSpec],
        metadata: Mapping[str, str] | None = None,
        *,
        inputs: Iterable[Path | str] = (),
    ) -> None:
        super().__init__(path, plan(specs, metadata), inputs=inputs)


def plan(specs: Sequence[SafetensorsSpec], metadata: Mapping[str, str] | None = None) -> FileLayout:
    """Lay out a file as huggingface/safetensors does: strictest alignment first, then by name; header padded to 8."""
    rank = {dtype: index for index, dtype in enumerate(DTYPE_BITS)}
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    relative: dict[str, int] = {}
    sizes: dict[str, int] = {}
    end = 0
    for spec in sorted(specs, key=lambda spec: (-rank[spec.dtype], spec.name)):
        if spec.name in sizes:
            raise CheckpointError(f"tensor {spec.name!r}", "two tensors have this name")
        relative[spec.name], sizes[spec.name] = end, spec.nbytes
        end += spec.nbytes
        entries[spec.name] = {
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "data_offsets": [relative[spec.name], end],
        }
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    header = len(text).to_bytes(8, "little") + text
    offsets = {name: len(header) + offset for name, offset in relative.items()}
    return FileLayout(header, offsets, sizes, len(header) + end)
