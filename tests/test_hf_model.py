"""Hugging Face folders as models: names, order, types, bytes and metadata as llama.cpp's converter gives them."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loragraft.formats.gguf.values import Value
from loragraft.formats.source import ModelSource, TensorSource
from loragraft.formats.views import float_rows
from loragraft.models import open_model
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


def as_golden(tensor: TensorSource, expected: str) -> dict[str, Any]:
    """The tensor as the golden data describe it; one of BF16 as F16, where `expected` (the type) says so."""
    rows = tensor.rows(0, tensor.n_rows)
    kind = tensor.type.name
    if (kind, expected) == ("BF16", "F16"):
        kind, rows = expected, float_rows(rows, tensor.type).astype("<f2")
    return {
        "type": kind,
        "shape": list(reversed(tensor.shape)),
        "sha256": hashlib.sha256(np.ascontiguousarray(rows).tobytes()).hexdigest(),
    }


def plain(value: Value) -> Any:
    """As the golden data record metadata: numbers and texts themselves, long arrays by their length."""
    if isinstance(value.data, list | np.ndarray):
        return len(value.data) if len(value.data) > 16 else list(value.data)
    return value.data


def assert_is_golden(model: ModelSource, name: str) -> None:
    expected = golden(name)
    types = {tensor: facts["type"] for tensor, facts in expected["tensors"].items()}
    assert list(model.tensors) == list(types)
    assert {n: as_golden(t, types[n]) for n, t in model.tensors.items()} == expected["tensors"]
    metadata = {key: plain(value) for key, value in model.metadata.items()}
    if metadata["general.file_type"] == 32:
        metadata["general.file_type"] = 1  # stored BF16; the golden file was written as F16
    assert list(metadata.items()) == list(expected["metadata"].items())


@pytest.mark.parametrize(("fixture", "name", "folder"), CASES, ids=[case[0] for case in CASES])
def test_is_what_the_reference_converter_makes(tmp_path: Path, fixture: str, name: str, folder: str) -> None:
    model = open_model(folder_named(tmp_path, fixture, folder))
    assert_is_golden(model, name)
    assert model.notes == []


@pytest.mark.parametrize(
    "fixture", ["llama-kjv", "qwen3moe-8x", "qwen3moe-8x-nvfp4", "starcoder2-bias-nvfp4"]
)
def test_rows_in_any_cut_are_the_same(fixture: str) -> None:
    model = open_model(data(fixture))
    rng = np.random.default_rng(3)
    for tensor in model.tensors.values():
        whole = tensor.rows(0, tensor.n_rows)
        start = 0
        while start < tensor.n_rows:
            stop = min(tensor.n_rows, start + int(rng.integers(1, 400)))
            np.testing.assert_array_equal(tensor.rows(start, stop), whole[start:stop], tensor.name)
            start = stop


def test_a_sharded_checkpoint_is_the_same_model(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    weights = load_file(data("llama-kjv") / "model.safetensors")
    folder = tmp_path / "base_hf_f16"
    shutil.copytree(data("llama-kjv"), folder, ignore=shutil.ignore_patterns("*.safetensors"))
    names = sorted(weights)
    shards = {"model-00001-of-00002.safetensors": names[:17], "model-00002-of-00002.safetensors": names[17:]}
    for shard, held in shards.items():
        save_file({name: weights[name] for name in held}, folder / shard)
    index = {"weight_map": {name: shard for shard, held in shards.items() for name in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_is_golden(open_model(folder), "llama-kjv")
