"""What a file holds: metadata and tensors of a model, an adapter, an importance matrix or a checkpoint."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from loragraft.adapters.norms import TargetNorm, target_norms
from loragraft.adapters.peft import part_of
from loragraft.adapters.receipt import AdapterReceipt, receipt_of
from loragraft.errors import CheckpointError
from loragraft.formats import peft
from loragraft.formats.checkpoint import Checkpoint
from loragraft.formats.gguf.model import joined_tensors, open_shards
from loragraft.formats.gguf.values import Value, ValueType
from loragraft.formats.imatrix import Imatrix
from loragraft.formats.jsonfile import load_json
from loragraft.formats.safetensors import CheckpointTensor, SafetensorsFile
from loragraft.huggingface.contents import Kind, recognise
from loragraft.huggingface.intake import STRICT, Intake
from loragraft.huggingface.mlx import MLX_WEIGHTS, mlx_part_of
from loragraft.opening import AdapterArguments, load_adapters, open_model
from loragraft.system.files import named_path
from loragraft.system.mapped import intact
from loragraft.units import bytes_text, plural


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


@dataclass(frozen=True, slots=True)
class AdapterOnModel:
    """An adapter on the model that was inspected: what became of its file, and how large its changes are."""

    receipt: AdapterReceipt
    norms: list[TargetNorm]
    left_out: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        targets = [{**asdict(norm), "relative": _finite(norm.relative)} for norm in self.norms]
        facts = {**asdict(self.receipt), "path": str(self.receipt.path)}
        return {**facts, "left_out": list(self.left_out), "targets": targets}


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
    """Of an adapter's folder: how many tensors of which kind it holds."""
    notes: list[str] = field(default_factory=list)
    """How it was found, and what was passed over."""
    adapters: list[AdapterOnModel] = field(default_factory=list)
    """Those that were to be put on it, and what they change."""

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
            "notes": self.notes,
            **({"adapters": [adapter.as_json() for adapter in self.adapters]} if self.adapters else {}),
        }


@intact
def inspect(path: Path | str, adapters: AdapterArguments = (), *, intake: Intake = STRICT) -> FileReport:
    """Read the headers of the file or folder `path`, whatever it is; no weight is read, but with `adapters` (paths, or
    pairs of path and strength): then the path is a model's, and the tensors that they change are read.

    Raises `FormatError` if it is nothing that loragraft knows, or malformed.
    """
    found = recognise(named_path(path))
    match found.kind:
        case Kind.CHECKPOINT:
            report = _checkpoint(found.path, intake)
        case Kind.PEFT_ADAPTER | Kind.MLX_ADAPTER:
            report = _adapter(found.path, found.kind, intake)
        case Kind.LEGACY_IMATRIX:
            report = _legacy_imatrix(found.path)
        case Kind.SAFETENSORS:
            file = SafetensorsFile.open(found.path)
            report = FileReport(
                found.path, found.kind, [found.path], _json_facts(file.metadata), _tensor_facts([file])
            )
        case _:
            report = _gguf(found.path, found.kind)
    report = replace(report, notes=[*found.notes, *report.notes])
    return _with_adapters(report, adapters, intake) if adapters else report


def _with_adapters(report: FileReport, adapters: AdapterArguments, intake: Intake) -> FileReport:
    base = open_model(report.path, dequantize=True, intake=intake)
    _, loaded = load_adapters(adapters, base, intake=intake, invoked=True)
    on_model = [
        AdapterOnModel(receipt_of(adapter, strength), target_norms(base, adapter, strength), adapter.left_out)
        for adapter, strength in loaded
    ]
    notes = [*report.notes, *base.notes, *(note for adapter, _ in loaded for note in adapter.notes)]
    return replace(report, notes=notes, adapters=on_model)


def _gguf(path: Path, kind: Kind) -> FileReport:
    files = open_shards(path)
    facts = [
        TensorEntry(tensor.name, tensor.shape, tensor.type.name, tensor.nbytes, tensor.file)
        for tensor in joined_tensors(files).values()
    ]
    metadata = [
        MetadataEntry(key, _type_name(value), _plain(value)) for key, value in files[0].metadata.items()
    ]
    return FileReport(path, kind, [file.path for file in files], metadata, facts)


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


def _checkpoint(folder: Path, intake: Intake) -> FileReport:
    checkpoint = Checkpoint.open(folder, allow_pickle=intake.allow_pickle)
    return FileReport(
        folder,
        Kind.CHECKPOINT,
        [file.path for file in checkpoint.files],
        _json_facts(checkpoint.config),
        _tensor_facts(checkpoint.files),
        notes=checkpoint.notes,
    )


def _adapter(folder: Path, kind: Kind, intake: Intake) -> FileReport:
    if kind is Kind.MLX_ADAPTER:
        config, files = load_json(folder / peft.CONFIG, CheckpointError), [folder / MLX_WEIGHTS]
        tensors = list(SafetensorsFile.open(files[0]).tensors.values())
        parts, notes = Counter(mlx_part_of(tensor.name) for tensor in tensors), list[str]()
    else:
        adapter = peft.PeftFolder.open(folder, allow_pickle=intake.allow_pickle)
        config, files, notes = adapter.config, adapter.files, adapter.notes
        tensors = list(adapter.tensors.values())
        parts = Counter(part_of(tensor.name) for tensor in tensors)
    entries = [_tensor_fact(tensor) for tensor in tensors]
    return FileReport(folder, kind, files, _json_facts(config), entries, parts, notes)


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
