"""PEFT adapter folders, raw: adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loragraft.errors import CheckpointError
from loragraft.formats.jsonfile import load_json
from loragraft.formats.safetensors import CheckpointTensor, SafetensorsFile

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class PeftFolder:
    """An adapter's configuration and tensors, as PEFT names them; nothing is interpreted yet."""

    path: Path
    config: dict[str, Any]
    tensors: dict[str, CheckpointTensor]

    @classmethod
    def open(cls, folder: Path | str) -> PeftFolder:
        """Read `folder`. Raises `CheckpointError` if anything in it is missing or malformed."""
        folder = Path(folder)
        if not folder.is_dir():
            raise CheckpointError(folder, "is not a folder" if folder.exists() else "no such folder")
        if not (folder / CONFIG).exists():
            raise CheckpointError(
                folder, "is not a PEFT adapter", found=f"no {CONFIG}", expected=f"{CONFIG}, {WEIGHTS}"
            )
        config = load_json(folder / CONFIG, CheckpointError)
        if not (folder / WEIGHTS).exists() and (folder / "adapter_model.bin").exists():
            raise CheckpointError(
                folder,
                "its weights are pickled, which is not safe to read",
                found="adapter_model.bin",
                expected=WEIGHTS,
                hint="load it with peft and save_pretrained it again",
            )
        return cls(folder, config, SafetensorsFile.open(folder / WEIGHTS).tensors)
