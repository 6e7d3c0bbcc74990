"""Quantized checkpoints, changed at will: for what the fixtures do not show."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from loragraft.formats.safetensors import SafetensorsFile, SafetensorsSpec, SafetensorsWriter
from paths import data

V = "model.layers.0.self_attn.v_proj"


@dataclass
class Raw:
    """A tensor of any dtype: `data` are its bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: np.ndarray

    @staticmethod
    def f32(values: Any) -> Raw:
        array = np.asarray(values, "<f4")
        return Raw("F32", array.shape, array.reshape(-1).view(np.uint8))

    @staticmethod
    def of_bytes(dtype: str, array: np.ndarray) -> Raw:
        return Raw(dtype, array.shape, array.reshape(-1))

    @property
    def matrix(self) -> np.ndarray:
        return self.data.reshape(self.shape[0], -1)


Edit = Callable[[dict[str, Any], dict[str, Raw]], object]


def changed(folder: Path, edit: Edit, fixture: str = "llama-kjv-nvfp4") -> Path:
    """A copy of a checkpoint with config.json and tensors edited (without hf_quant_config.json)."""
    source = data(fixture)
    config = json.loads((source / "config.json").read_text())
    tensors = {
        name: Raw(t.dtype, t.shape, t.data())
        for name, t in SafetensorsFile.open(source / "model.safetensors").tensors.items()
    }
    edit(config, tensors)
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").symlink_to(source / "tokenizer.json")
    specs = [SafetensorsSpec(name, raw.dtype, raw.shape) for name, raw in tensors.items()]
    with SafetensorsWriter(folder / "model.safetensors", specs) as writer:
        for name, raw in tensors.items():
            writer.write(name, 0, np.ascontiguousarray(raw.data))
    return folder
