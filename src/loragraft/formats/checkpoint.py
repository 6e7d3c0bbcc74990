"""Hugging Face folders: configuration files and safetensors weights, in one file or sharded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loragraft.errors import CheckpointError
from loragraft.formats.jsonfile import load_json
from loragraft.formats.safetensors import CheckpointTensor, SafetensorsFile

__all__ = ["Checkpoint", "CheckpointTensor"]

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"


class Checkpoint:
    """A model's folder, read: `config` is config.json, `tensors` are all weights by their names."""

    def __init__(self, path: Path, config: dict[str, Any], files: list[SafetensorsFile]) -> None:
        self.path = path
        self.config = config
        self.files = files
        self.tensors: dict[str, CheckpointTensor] = {}
        for file in files:
            for name, tensor in file.tensors.items():
                if name in self.tensors:
                    raise CheckpointError(
                        file.path,
                        f"tensor {name!r} is already in another file",
                        found=self.tensors[name].file.name,
                    )
                self.tensors[name] = tensor

    @classmethod
    def open(cls, folder: Path | str) -> Checkpoint:
        """Read `folder`. Raises `CheckpointError` if anything in it is missing or malformed."""
        folder = Path(folder)
        if not folder.is_dir():
            raise CheckpointError(folder, "is not a folder" if folder.exists() else "no such folder")
        if not (folder / "config.json").exists() and (folder / "adapter_config.json").exists():
            raise CheckpointError(folder, "holds an adapter, not a model", hint="pass it with --lora")
        if not (folder / "config.json").exists():
            raise CheckpointError(folder, "is no Hugging Face model", found="no config.json")
        return cls(folder, load_json(folder / "config.json", CheckpointError), _open_weights(folder))

    def has(self, name: str) -> bool:
        """Whether the folder holds a file `name`."""
        return (self.path / name).is_file()

    def json(self, name: str) -> dict[str, Any]:
        """The JSON object in the folder's file `name`. Raises `CheckpointError` if there is none."""
        return load_json(self.path / name, CheckpointError)


def _open_weights(folder: Path) -> list[SafetensorsFile]:
    if (folder / _INDEX).exists():
        return _open_shards(folder)
    if (folder / _WEIGHTS).exists():
        return [SafetensorsFile.open(folder / _WEIGHTS)]
    others = sorted(folder.glob("*.safetensors"))
    if others:
        return [SafetensorsFile.open(path) for path in others]
    pickled = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    if pickled:
        raise CheckpointError(
            folder,
            "its weights are pickled, which is not safe to read",
            found=pickled[0],
            expected=_WEIGHTS,
            hint="load it with transformers and save_pretrained it again",
        )
    raise CheckpointError(folder, "holds no weights", expected=f"{_WEIGHTS} or {_INDEX}")


def _open_shards(folder: Path) -> list[SafetensorsFile]:
    """The files that the index names. Every tensor must be in the file where the index says it is."""
    index = folder / _INDEX
    where = load_json(index, CheckpointError).get("weight_map")
    if not isinstance(where, dict) or not where or not all(isinstance(name, str) for name in where.values()):
        raise CheckpointError(index, "weight_map is not a map of tensor names to file names")
    files = {}
    for name in sorted(set(where.values())):
        if name in ("", ".", "..") or Path(name).name != name or "\\" in name:
            raise CheckpointError(index, "a shard lies outside of the folder", found=repr(name))
        if not (folder / name).exists():
            raise CheckpointError(
                folder / name, "a shard that the index names is missing", expected=f"it in {folder}"
            )
        files[name] = SafetensorsFile.open(folder / name)
    for tensor, name in where.items():
        if tensor not in files[name].tensors:
            raise CheckpointError(
                folder / name, f"tensor {tensor!r} is not in it, though the index says so", found=index.name
            )
    return list(files.values())
