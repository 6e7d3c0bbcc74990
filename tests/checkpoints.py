"""Quantized checkpoints, changed at will: for what the fixtures do not show."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from loragraft.formats.safetensors import SafetensorsFile, SafetensorsSpec, SafetensorsWriter
from loragraft.quants import e4m3
from paths import data

#: E2M1: sign, two exponent bits, one mantissa bit (OCP Microscaling Formats 1.0, section 5.3.3).
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])
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


def raw_tensors(folder: Path) -> dict[str, Raw]:
    """Of a checkpoint in one file."""
    file = SafetensorsFile.open(folder / "model.safetensors")
    return {name: Raw(t.dtype, t.shape, t.data()) for name, t in file.tensors.items()}


def nvfp4_formula(tensors: dict[str, Raw], stem: str) -> np.ndarray:
    """ModelOpt's W = E2M1[nibble] * weight_scale * weight_scale_2, in float64."""
    codes = tensors[f"{stem}.weight"].matrix
    values = np.stack([E2M1[codes & 15], E2M1[codes >> 4]], axis=-1).reshape(len(codes), -1)
    blocks = e4m3.decode(tensors[f"{stem}.weight_scale"].matrix).astype(np.float64)
    result: np.ndarray = values * np.repeat(blocks, 16, axis=1)
    return result * tensors[f"{stem}.weight_scale_2"].data.view("<f4")[0]


Edit = Callable[[dict[str, Any], dict[str, Raw]], object]


def changed(folder: Path, edit: Edit, fixture: str = "llama-kjv-nvfp4") -> Path:
    """A copy of a checkpoint with config.json and tensors edited (without hf_quant_config.json)."""
    source = data(fixture)
    config = json.loads((source / "config.json").read_text())
    tensors = raw_tensors(source)
    edit(config, tensors)
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").symlink_to(source / "tokenizer.json")
    specs = [SafetensorsSpec(name, raw.dtype, raw.shape) for name, raw in tensors.items()]
    with SafetensorsWriter(folder / "model.safetensors", specs) as writer:
        for name, raw in tensors.items():
            writer.write(name, 0, np.ascontiguousarray(raw.data))
    return folder
