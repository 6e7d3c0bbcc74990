"""Hugging Face folders: configuration files and safetensors weights, in one file or sharded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loragraft.errors import CheckpointError
from loragraft.formats.jsonfile import load_json
from loragraft.formats.safetensors import CheckpointTensor, SafetensorsFile
from loragraft.formats.weight_files import MODEL, open_weights
from loragraft.system.remote.paths import as_path

__all__ = ["Checkpoint", "CheckpointTensor"]


class Checkpoint:
    """A model's folder, read: `config` is config.json, `tensors` are all weights by their names."""

    def __init__(
        self, path: Path, config: dict[str, Any], files: list[SafetensorsFile], notes: list[str] | None = None
    ) -> None:
        self.path = path
        self.config = config
        self.files = files
        self.notes = notes or []
        """What was passed over in reading it."""
        self.tensors: dict[str, CheckpointTensor] = {}
        for file in files:
            for name, tensor in file.tensors.items():
                if name in self.tensors:
                    raise CheckpointError(
                        file.path,
                        f"tensor {name!r} is also in another file",
                        found=self.tensors[name].file.name,
                    )
                self.tensors[name] = tensor

    @classmethod
    def open(cls, folder: Path | str, *, allow_pickle: bool = False) -> Checkpoint:
        """Read `folder`. Raises `CheckpointError` if anything in it is missing or malformed."""
        folder = as_path(folder)
        if not folder.is_dir():
            raise CheckpointError(folder, "is not a folder" if folder.exists() else "no such folder")
        if not (folder / "config.json").exists() and (folder / "adapter_config.json").exists():
            raise CheckpointError(folder, "holds an adapter, not a model", hint="pass it with --lora")
        if not (folder / "config.json").exists():
            raise CheckpointError(folder, "is not a Hugging Face model", found="no config.json")
        config, notes = load_json(folder / "config.json", CheckpointError), list[str]()
        return cls(folder, config, open_weights(folder, MODEL, notes, allow_pickle=allow_pickle), notes)

    def has(self, name: str) -> bool:
        """Whether the folder holds a file `name`."""
        return (self.path / name).is_file()

    def json(self, name: str) -> dict[str, Any]:
        """The JSON object in the folder's file `name`. Raises `CheckpointError` if there is none."""
        return load_json(self.path / name, CheckpointError)
