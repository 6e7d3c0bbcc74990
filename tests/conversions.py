"""Hugging Face fixtures, and how the golden data record what became of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from loragraft.formats.gguf.values import Value
from paths import data

#: Our fixture, the golden file made of it, and the folder's name when that was made (`general.name` comes from it).
CASES = [
    ("llama-kjv", "llama-kjv", "base_hf_f16"),
    ("qwen2-bias", "qwen2-bias-f16", "hf_qwen2"),
    ("starcoder2-bias", "starcoder2-bias-f16", "hf_starcoder2"),
    ("qwen3moe-8x", "qwen3moe-8x-f16", "hf_qwen3moe"),
    ("llama-kjv-nvfp4", "llama-kjv-nvfp4", "modelopt_nvfp4"),
    ("qwen3moe-8x-nvfp4", "qwen3moe-8x-nvfp4", "modelopt_qwen3moe_nvfp4"),
]


def golden(name: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(data("golden/convert.json").read_text())[name]
    return record


def folder_named(tmp_path: Path, fixture: str, name: str) -> Path:
    """A copy of the fixture under another name (links: nothing is written to it)."""
    folder = tmp_path / name
    folder.mkdir()
    for path in data(fixture).iterdir():
        (folder / path.name).symlink_to(path)
    return folder


def plain(value: Value) -> Any:
    """As the golden data record metadata: numbers and texts themselves, long arrays by their length."""
    if isinstance(value.data, list | np.ndarray):
        return len(value.data) if len(value.data) > 16 else list(value.data)
    return value.data
