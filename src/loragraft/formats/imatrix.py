"""Importance matrices of llama-imatrix: GGUF, and the legacy .dat format.

For each linear weight an importance matrix holds the sum of the squared activations that met each column, and how many
activations were summed. Sources: common/imatrix-loader.cpp, tools/imatrix and tools/quantize of llama.cpp.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from loragraft.arrays import Floats
from loragraft.errors import ImatrixError
from loragraft.formats.gguf.reader import MAX_TENSORS, GGUFFile, GGUFTensor
from loragraft.formats.gguf.values import Value
from loragraft.formats.gguf.writer import GGUFWriter, TensorSpec
from loragraft.quants.types import F32
from loragraft.system.mapped import map_file
from loragraft.system.remote.paths import as_path

Counts = npt.NDArray[np.int64]

_DATASETS = "imatrix.datasets"
_CHUNK_COUNT = "imatrix.chunk_count"
_CHUNK_SIZE = "imatrix.chunk_size"
_SUMS_SUFFIX = ".in_sum2"
_COUNTS_SUFFIX = ".counts"


@dataclass
class Imatrix:
    """An importance matrix, by the names of the weights."""

    sums: dict[str, Floats] = field(repr=False)
    """Sums of squared activations: [n_expert or 1, columns].

    A legacy file does not say where one expert ends: there it is [1, n_expert * columns].
    """
    counts: dict[str, Counts] = field(repr=False)
    """Activations summed: [n_expert or 1]. (In a legacy file: chunks, and the sums are scaled accordingly.)"""
    datasets: list[str] = field(default_factory=list)
    """The texts that it was collected on."""
    chunk_count: int = 0
    chunk_size: int = 0
    """In tokens; 0 if unknown."""

    @cached_property
    def entries(self) -> dict[str, Floats]:
        """Mean squared activations, shaped like `sums`, to the bit as llama-quantize forms them.

        An expert that no token reached has importance 1 everywhere.
        """
        entries = {}
        for name, sums in self.sums.items():
            counts = self.counts[name].astype(np.float32)[:, np.newaxis]
            entries[name] = np.divide(sums, counts, out=np.ones_like(sums), where=counts > 0)
        return entries

    def importance(self, name: str, shape: tuple[int, ...]) -> Floats | None:
        """The importance of weight `name` of `shape` ([out, in] or [n_expert, out, in]) as [n_expert or 1, in].

        None if there is no entry for it. Raises `ImatrixError` if the entry is of another size.
        """
        entry = self.entries.get(name)
        if entry is None:
            return None
        n_expert = shape[0] if len(shape) > 2 else 1
        if entry.size != n_expert * shape[-1]:
            raise ImatrixError(
                name,
                "the importance matrix is for another model",
                found=f"{entry.size} values",
                expected=n_expert * shape[-1],
            )
        return entry.reshape(n_expert, shape[-1])

    def select(self, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> Imatrix:
        """Without entries whose name contains one of `exclude`, and, if `include` is not empty, only with those whose
        name contains one of it."""

        def wanted(name: str) -> bool:
            included = not include or any(part in name for part in include)
            return included and not any(part in name for part in exclude)

        names = [name for name in self.sums if wanted(name)]
        return Imatrix(
            {name: self.sums[name] for name in names},
            {name: self.counts[name] for name in names},
            self.datasets,
            self.chunk_count,
            self.chunk_size,
        )

    @classmethod
    def load(cls, path: Path | str) -> Imatrix:
        """Read either format. Raises `ImatrixError` (or `GGUFError`, for a malformed GGUF file)."""
        path = as_path(path)
        with map_file(path, ImatrixError) as mapping:
            if mapping[:4] != b"GGUF":
                imatrix = _LegacyParser(path, mapping[:]).parse()
                return _checked(path, imatrix)
        with GGUFFile.open(path) as file:
            return _checked(path, _from_gguf(file))

    def save_gguf(self, path: Path | str, *, inputs: Iterable[Path | str] = ()) -> None:
        """Write it as llama-imatrix does; `path` must be none of `inputs`. Raises `OutputError`."""
        metadata = {
            "general.type": Value.string("imatrix"),
            _DATASETS: Value.strings(self.datasets),
            _CHUNK_COUNT: Value.u32(self.chunk_count),
            _CHUNK_SIZE: Value.u32(self.chunk_size),
        }
        arrays: dict[str, Floats] = {}
        for name in sorted(self.sums, key=str.encode):
            arrays[name + _SUMS_SUFFIX] = self.sums[name]
            arrays[name + _COUNTS_SUFFIX] = self.counts[name].astype(np.float32)[:, np.newaxis]
        specs = [TensorSpec(name, array.shape, F32) for name, array in arrays.items()]
        with GGUFWriter(path, metadata, specs, inputs=inputs) as writer:
            for name, array in arrays.items():
                writer.write(name, 0, np.ascontiguousarray(array, dtype="<f4"))


def _checked(path: Path, imatrix: Imatrix) -> Imatrix:
    """Raises `ImatrixError` for an infinity or NaN, naming the place."""
    for name, sums in imatrix.sums.items():
        wrong = np.argwhere(~np.isfinite(sums))
        if len(wrong):
            row, column = wrong[0].tolist()
            raise ImatrixError(
                path,
                f"a sum for {name!r} is not a finite number",
                found=f"{sums[row, column]} in row {row}, column {column}",
                hint="collect it again",
            )
    return imatrix


def _from_gguf(file: GGUFFile) -> Imatrix:
    def number(key: str) -> int:
        data = file.metadata[key].data
        if type(data) is not int:
            raise ImatrixError(file.path, f"{key} is not a number", found=repr(data))
        return data

    missing = [key for key in (_DATASETS, _CHUNK_COUNT, _CHUNK_SIZE) if key not in file.metadata]
    if missing:
        raise ImatrixError(file.path, "is not an importance matrix", found=f"no {missing[0]} in its metadata")
    datasets = file.metadata[_DATASETS].data
    if not isinstance(datasets, list) or not all(isinstance(name, str) for name in datasets):
        raise ImatrixError(file.path, f"{_DATASETS} is not a list of strings")
    sums, counts = {}, {}
    for tensor in file.tensors.values():
        if tensor.name.endswith(_SUMS_SUFFIX):
            sums[tensor.name.removesuffix(_SUMS_SUFFIX)] = _floats(file.path, tensor)
        elif tensor.name.endswith(_COUNTS_SUFFIX):
            counts[tensor.name.removesuffix(_COUNTS_SUFFIX)] = _floats(file.path, tensor)
    if not sums:
        raise ImatrixError(file.path, "the importance matrix is empty")
    unpaired = sorted(sums.keys() ^ counts.keys())
    if unpaired:
        raise ImatrixError(file.path, f"the entry for {unpaired[0]!r} has no sums or no counts")
    for name, array in counts.items():
        if sums[name].size % array.size:
            raise ImatrixError(
                file.path,
                f"the sums and counts for {name!r} do not fit",
                found=f"{sums[name].size} sums, {array.size} counts",
            )
        if not np.isfinite(array).all() or np.abs(array).max() >= 2.0**62:
            raise ImatrixError(file.path, f"a count for {name!r} is not a finite number")
    return Imatrix(
        {name: array.reshape(counts[name].size, -1) for name, array in sums.items()},
        {name: _round_half_away(array.reshape(-1)) for name, array in counts.items()},
        datasets,
        number(_CHUNK_COUNT),
        number(_CHUNK_SIZE),
    )


def _floats(path: Path, tensor: GGUFTensor) -> Floats:
    if tensor.type is not F32:
        raise ImatrixError(path, f"{tensor.name!r} has a wrong type", found=tensor.type, expected=F32)
    return tensor.data().view("<f4").astype(np.float32)


def _round_half_away(values: Floats) -> Counts:
    """C's lround."""
    wide = values.astype(np.float64)
    return np.copysign(np.floor(np.abs(wide) + 0.5), wide).astype(np.int64)


class _LegacyParser:
    """int32 count; per entry: int32 and name, int32 chunks, int32 and float32 sums; int32 chunks, int32 and dataset."""

    def __init__(self, path: Path, data: bytes) -> None:
        self.path = path
        self.data = data
        self.position = 0

    def parse(self) -> Imatrix:
        n_entries = self.number("the number of entries")
        if not 0 < n_entries <= (len(self.data) - 4) // 16:
            raise ImatrixError(
                self.path,
                "is not an importance matrix",
                found=f"neither the magic of GGUF nor a plausible number of entries: {n_entries}",
            )
        if n_entries > MAX_TENSORS:
            raise ImatrixError(self.path, "there are too many entries", found=n_entries, expected=MAX_TENSORS)
        imatrix = Imatrix({}, {})
        for index in range(n_entries):
            self.entry(index, imatrix)
        if self.left() >= 4:  # older files end here
            imatrix.chunk_count = self.number("the number of chunks")
            if self.left() >= 4:
                length = self.number("the length of the dataset's name")
                if length > 0:
                    imatrix.datasets.append(self.text(length, "the dataset's name"))
        return imatrix

    def entry(self, index: int, imatrix: Imatrix) -> None:
        name = self.text(self.number(f"the length of name {index}"), f"name {index}")
        if name in imatrix.sums:
            raise ImatrixError(self.path, "two entries have the same name", found=repr(name))
        n_calls = self.number(f"the count for {name!r}")
        n_values = self.number(f"the number of sums for {name!r}")
        if n_values < 1:
            raise ImatrixError(self.path, f"the entry for {name!r} has no sums", found=n_values)
        sums = np.frombuffer(self.bytes(4 * n_values, f"the sums for {name!r}"), "<f4").astype(np.float32)
        imatrix.sums[name] = sums[np.newaxis]
        # Without a count the sums are taken for means, as llama-quantize does.
        imatrix.counts[name] = np.array([n_calls if n_calls > 0 else 1], dtype=np.int64)

    def left(self) -> int:
        return len(self.data) - self.position

    def bytes(self, count: int, what: str) -> bytes:
        if not 0 <= count <= self.left():
            raise ImatrixError(
                self.path,
                f"the file is truncated, or its header is wrong about {what}",
                found=f"{self.left()} bytes left",
                expected=count,
            )
        self.position += count
        return self.data[self.position - count : self.position]

    def number(self, what: str) -> int:
        value: Any = struct.unpack("<i", self.bytes(4, what))[0]
        return int(value)

    def text(self, length: int, what: str) -> str:
        return self.bytes(length, what).split(b"\0")[0].decode("utf-8", "surrogateescape")
