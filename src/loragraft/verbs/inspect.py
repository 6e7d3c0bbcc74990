"""What a file holds: metadata and tensors of a model, an adapter, an importance matrix or a checkpoint."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from loragraft.adapters.peft import part_of
from loragraft.errors import FormatError
from loragraft.formats import peft
from loragraft.formats.checkpoint import Checkpoint
from loragraft.formats.gguf.model import joined_tensors, open_shards
from loragraft.formats.gguf.reader import GGUFFile
from loragraft.formats.gguf.values import Metadata, Value, ValueType
from loragraft.formats.imatrix import Imatrix
from loragraft.formats.mapped import map_file
from loragraft.formats.safetensors import CheckpointTensor, SafetensorsFile
from loragraft.units import bytes_text, plural


class Kind(StrEnum):
    """What was recognised."""

    GGUF_MODEL = "GGUF model"
    GGUF_ADAPTER = "GGUF adapter"
    GGUF_IMATRIX = "GGUF importance matrix"
    GGUF_OTHER = "GGUF file"
    LEGACY_IMATRIX = "legacy importance matrix"
    CHECKPOINT = "Hugging Face checkpoint"
    PEFT_ADAPTER = "PEFT adapter"
    SAFETENSORS = "safetensors file"


@dataclass(frozen=True, slots=True)
class MetadataEntry:
    """One entry of the metadata: `value` is made of what JSON knows."""

    key: str
    type: str
    """As GGUF names it (`u32`, `arr[str]`), or the type of a JSON value."""
    value: Any


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor: `shape` in NumPy's order; `type` as the file's format names it."""

    name: str
    shape: tuple[int, ...]
    type: str
    nbytes: int
    file: Path

    @property
    def n_elements(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True, repr=False)
class FileReport:
    """What `inspect` found."""

    path: Path
    kind: Kind
    files: list[Path]
    """All files that were read."""
    metadata: list[MetadataEntry]
    tensors: list[TensorEntry]
    parts: Mapping[str, int] = field(default_factory=dict)
    """Of a PEFT adapter: how many tensors of which kind it holds."""

    def __repr__(self) -> str:
        tensors = f"{plural(len(self.tensors), 'tensor')}, {bytes_text(self.nbytes)}"
        return f"<FileReport {self.path}: {self.kind}, {tensors}>"

    @property
    def n_elements(self) -> int:
        return sum(tensor.n_elements for tensor in self.tensors)

    @property
    def nbytes(self) -> int:
        """Of the tensors' data."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def bits_per_element(self) -> float:
        """Of a GGUF model, the bits per weight. (A checkpoint may pack several weights into an element.)"""
        return 8 * self.nbytes / self.n_elements if self.n_elements else 0.0

    def types(self) -> dict[str, tuple[int, int]]:
        """For each tensor type the number of tensors and their bytes, largest share first."""
        totals: dict[str, tuple[int, int]] = {}
        for tensor in self.tensors:
            count, nbytes = totals.get(tensor.type, (0, 0))
            totals[tensor.type] = (count + 1, nbytes + tensor.nbytes)
        return dict(sorted(totals.items(), key=lambda item: -item[1][1]))

    def as_json(self) -> dict[str, Any]:
        """The same, made of what JSON knows."""
        return {
            "path": str(self.path),
            "kind": str(self.kind),
            "files": [str(path) for path in self.files],
            "metadata": {fact.key: {"type": fact.type, "value": fact.value} for fact in self.metadata},
            "tensors": [
                {
                    "name": tensor.name,
                    "shape": list(tensor.shape),
                    "type": tensor.type,
                    "bytes": tensor.nbytes,
                    "file": tensor.file.name,
                }
                for tensor in self.tensors
            ],
            **({"parts": dict(self.parts)} if self.parts else {}),
            "elements": self.n_elements,
            "bytes": self.nbytes,
            "bits_per_element": round(self.bits_per_element, 4),
        }


def inspect(path: Path | str) -> FileReport:
    """Read the headers of the file or folder `path`, whatever it is; no weight is read.

    Raises `FormatError` if it is nothing that loragraft knows, or malformed.
    """
    path = Path(path)
    if path.is_dir():
        if (path / peft.CONFIG).exists() and not (path / "config.json").exists():
            return _peft(path)
        if not (path / "config.json").exists():
            raise FormatError(
                path,
                "the folder holds neither a checkpoint nor an adapter",
                expected=f"config.json or {peft.CONFIG} in it",
            )
        return _checkpoint(path)
    if path.name.endswith(".safetensors.index.json"):
        return _checkpoint(path.parent)
    with map_file(path, FormatError) as mapping:
        start = mapping[:16]
    if start[:4] == b"GGUF":
        return _gguf(path)
    if path.suffix == ".safetensors" or start[8:9] == b"{":
        file = SafetensorsFile.open(path)
        return FileReport(path, Kind.SAFETENSORS, [path], _json_facts(file.metadata), _tensor_facts([file]))
    if path.suffix == ".dat":
        return _legacy_imatrix(path)
    raise FormatError(
        path,
        "is nothing that can be inspected",
        found=f"a file that begins with {start[:8]!r}",
        expected="a GGUF or safetensors file, an importance matrix, or a folder with a checkpoint or an adapter",
    )


def _gguf(path: Path) -> FileReport:
    files = open_shards(path)
    facts = [
        TensorEntry(tensor.name, tensor.shape, tensor.type.name, tensor.nbytes, tensor.file)
        for tensor in joined_tensors(files).values()
    ]
    metadata = [
        MetadataEntry(key, _type_name(value), _plain(value)) for key, value in files[0].metadata.items()
    ]
    return FileReport(path, _gguf_kind(files[0]), [file.path for file in files], metadata, facts)


def _gguf_kind(file: GGUFFile) -> Kind:
    kinds = {"adapter": Kind.GGUF_ADAPTER, "imatrix": Kind.GGUF_IMATRIX, "model": Kind.GGUF_MODEL}
    default = "model" if "general.architecture" in file.metadata else ""
    return kinds.get(_text(file.metadata, "general.type", default), Kind.GGUF_OTHER)


def _text(metadata: Metadata, key: str, default: str) -> str:
    value = metadata.get(key)
    return value.data if value is not None and value.type is ValueType.STRING else default


_TYPE_NAMES = {
    ValueType.UINT8: "u8",
    ValueType.INT8: "i8",
    ValueType.UINT16: "u16",
    ValueType.INT16: "i16",
    ValueType.UINT32: "u32",
    ValueType.INT32: "i32",
    ValueType.FLOAT32: "f32",
    ValueType.BOOL: "bool",
    ValueType.STRING: "str",
    ValueType.ARRAY: "arr",
    ValueType.UINT64: "u64",
    ValueType.INT64: "i64",
    ValueType.FLOAT64: "f64",
}


def _type_name(value: Value) -> str:
    name = _TYPE_NAMES[value.type]
    return name if value.item is None else f"{name}[{_TYPE_NAMES[value.item]}]"


def _plain(value: Value) -> Any:
    """The data of a value as JSON knows it."""
    data = value.data
    if isinstance(data, np.ndarray):
        return _finite((data != 0).tolist() if value.item is ValueType.BOOL else data.tolist())
    if isinstance(data, list):
        return [_plain(item) if isinstance(item, Value) else item for item in data]
    if value.type is ValueType.FLOAT32 and math.isfinite(data):
        return float(str(np.float32(data)))  # 1e-05, not 9.999999747378752e-06
    return _finite(data)


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: such a number becomes its name, wherever in `value` it is."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return value


def _checkpoint(folder: Path) -> FileReport:
    checkpoint = Checkpoint.open(folder)
    return FileReport(
        folder,
        Kind.CHECKPOINT,
        [file.path for file in checkpoint.files],
        _json_facts(checkpoint.config),
        _tensor_facts(checkpoint.files),
    )


def _peft(folder: Path) -> FileReport:
    adapter = peft.PeftFolder.open(folder)
    tensors = [_tensor_fact(tensor) for tensor in adapter.tensors.values()]
    parts = Counter(part_of(name) for name in adapter.tensors)
    files = [folder / peft.WEIGHTS]
    return FileReport(folder, Kind.PEFT_ADAPTER, files, _json_facts(adapter.config), tensors, parts)


def _tensor_facts(files: Iterable[SafetensorsFile]) -> list[TensorEntry]:
    return [_tensor_fact(tensor) for file in files for tensor in file.tensors.values()]


def _tensor_fact(tensor: CheckpointTensor) -> TensorEntry:
    return TensorEntry(tensor.name, tensor.shape, tensor.dtype, tensor.nbytes, tensor.file)


_JSON_TYPES = {
    bool: "bool",
    int: "int",
    float: "float",
    str: "str",
    list: "list",
    dict: "object",
    type(None): "null",
}


def _json_facts(config: Mapping[str, Any]) -> list[MetadataEntry]:
    return [MetadataEntry(key, _JSON_TYPES[type(value)], _finite(value)) for key, value in config.items()]


def _legacy_imatrix(path: Path) -> FileReport:
    imatrix = Imatrix.load(path)
    metadata = [
        MetadataEntry("datasets", "arr[str]", imatrix.datasets),
        MetadataEntry("chunk_count", "i32", imatrix.chunk_count),
    ]
    tensors = [TensorEntry(name, sums.shape, "F32", sums.nbytes, path) for name, sums in imatrix.sums.items()]
    return FileReport(path, Kind.LEGACY_IMATRIX, [path], metadata, tensors)
