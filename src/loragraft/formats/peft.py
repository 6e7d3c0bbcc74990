"""PEFT adapter folders, raw: adapter_config.json and the adapter's weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loragraft.errors import CheckpointError
from loragraft.formats.jsonfile import load_json
from loragraft.formats.safetensors import CheckpointTensor
from loragraft.formats.weight_files import ADAPTER, open_weights
from loragraft.system.remote.paths import as_path

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class PeftFolder:
    """An adapter's configuration and tensors, as PEFT names them; nothing is interpreted yet."""

    path: Path
    config: dict[str, Any]
    tensors: dict[str, CheckpointTensor]
    files: list[Path] = field(default_factory=list)
    """That hold the tensors."""
    notes: list[str] = field(default_factory=list)

    @property
    def weights(self) -> Path:
        """The file to name in messages about a tensor."""
        return self.files[0] if len(self.files) == 1 else self.path

    @classmethod
    def open(cls, folder: Path | str, *, allow_pickle: bool = False) -> PeftFolder:
        """Read `folder`. Raises `CheckpointError` if anything in it is missing or malformed."""
        folder = as_path(folder)
        if not folder.is_dir():
            raise CheckpointError(folder, "is not a folder" if folder.exists() else "no such folder")
        if not (folder / CONFIG).exists():
            raise CheckpointError(
                folder, "is not a PEFT adapter", found=f"no {CONFIG}", expected=f"{CONFIG}, {WEIGHTS}"
            )
        config, notes = load_json(folder / CONFIG, CheckpointError), list[str]()
        files = open_weights(folder, ADAPTER, notes, allow_pickle=allow_pickle)
        tensors: dict[str, CheckpointTensor] = {}
        for file in files:
            for name, tensor in file.tensors.items():
                if name in tensors:
                    raise CheckpointError(
                        file.path,
                        f"tensor {name!r} is also in another file",
                        found=tensors[name].file.name,
                    )
                tensors[name] = tensor
        return cls(folder, config, tensors, [file.path for file in files], notes)
