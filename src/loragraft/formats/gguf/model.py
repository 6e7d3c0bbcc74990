"""Opens a GGUF model, in one file or in several, as a `ModelSource`."""

from __future__ import annotations

import re
from pathlib import Path

from loragraft.errors import GGUFError
from loragraft.formats.gguf.reader import GGUFFile, GGUFTensor
from loragraft.formats.gguf.schema import check_metadata
from loragraft.formats.gguf.values import Metadata, ValueType
from loragraft.formats.source import ModelSource
from loragraft.system.files import files_of

SPLIT_NO = "split.no"
SPLIT_COUNT = "split.count"
SPLIT_TENSORS = "split.tensors.count"
SPLIT_KEYS = (SPLIT_NO, SPLIT_COUNT, SPLIT_TENSORS)

_SHARD_NAME = re.compile(r"(?P<prefix>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


def open_gguf(path: Path | str) -> ModelSource:
    """The model at `path`; any file of a split model stands for the whole.

    The metadata are the first file's, without the `split.*` keys; the tensors come in the files' order, and each
    knows its `file`. Raises `GGUFError`.
    """
    files = open_shards(path)
    first = files[0]
    arch = first.metadata.get("general.architecture")
    if arch is None or arch.type is not ValueType.STRING:
        raise GGUFError(
            first.path, "the metadata does not name an architecture", expected="general.architecture"
        )
    check_metadata(first.path, first.metadata)
    metadata = {key: value for key, value in first.metadata.items() if key not in SPLIT_KEYS}
    return ModelSource(first.path, arch.data, metadata, joined_tensors(files))


def open_shards(path: Path | str) -> list[GGUFFile]:
    """The file at `path`, or all files of the split model that it belongs to, in order. Raises `GGUFError`."""
    file = GGUFFile.open(path)
    count = _integer(file, SPLIT_COUNT)
    if count <= 1:
        return [file]
    match = _SHARD_NAME.fullmatch(file.path.name)
    if match is None or int(match["count"]) != count:
        raise GGUFError(
            file.path,
            f"one of {count} files of a split model, but its name does not say so",
            expected=f"NAME-00001-of-{count:05d}.gguf",
        )
    files = []
    for number in range(count):
        shard = file.path.with_name(shard_name(match["prefix"], number, count))
        if not shard.exists():
            raise GGUFError(shard, f"file {number + 1} of {count} of the split model is missing")
        other = GGUFFile.open(shard)
        if (_integer(other, SPLIT_NO), _integer(other, SPLIT_COUNT)) != (number, count):
            raise GGUFError(
                shard,
                "not the file that its name says",
                found=f"{SPLIT_NO} {_integer(other, SPLIT_NO)} of {_integer(other, SPLIT_COUNT)}",
                expected=f"{number} of {count}",
            )
        files.append(other)
    expected, found = _integer(files[0], SPLIT_TENSORS), sum(len(file.tensors) for file in files)
    if SPLIT_TENSORS in files[0].metadata and expected != found:
        raise GGUFError(
            files[0].path, "the split model is incomplete", found=f"{found} tensors", expected=expected
        )
    return files


def model_files(model: ModelSource) -> list[Path]:
    """The files that `model` is read from, as far as its tensors tell; of a folder, all."""
    if model.path.is_dir():
        return files_of(model.path)
    files = {tensor.file for tensor in model.tensors.values() if isinstance(tensor, GGUFTensor)}
    return sorted({model.path, *files})


def joined_tensors(files: list[GGUFFile]) -> dict[str, GGUFTensor]:
    """All tensors of a model's files, in order. Raises `GGUFError` if two have the same name."""
    tensors: dict[str, GGUFTensor] = {}
    for file in files:
        for name, tensor in file.tensors.items():
            if name in tensors:
                raise GGUFError(
                    file.path, f"tensor {name!r} is also in another file", found=str(tensors[name].file)
                )
            tensors[name] = tensor
    return tensors


def shard_name(prefix: str, number: int, count: int) -> str:
    """The name of file `number` (from 0) of `count`, as llama.cpp's llama_split_path makes it."""
    return f"{prefix}-{number + 1:05d}-of-{count:05d}.gguf"


def _integer(file: GGUFFile, key: str, default: int = 0) -> int:
    """An integer of the metadata. Raises `GGUFError` if it is something else."""
    value = _get(file.metadata, key)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool):
        raise GGUFError(file.path, f"{key} is not a number", found=repr(value))
    return value


def _get(metadata: Metadata, key: str) -> object:
    value = metadata.get(key)
    return None if value is None else value.data
