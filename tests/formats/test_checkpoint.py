"""Checkpoints and PEFT folders that other libraries wrote."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from loragraft.errors import CheckpointError, UnsupportedError
from loragraft.formats.checkpoint import Checkpoint
from loragraft.formats.peft import PeftFolder
from loragraft.formats.safetensors import SafetensorsFile, SafetensorsSpec, SafetensorsWriter
from paths import data

ARRAYS = {
    "half": np.arange(6, dtype=np.float16).reshape(2, 3),
    "scalar": np.array(2.5, dtype=np.float32),
    "bytes": np.arange(5, dtype=np.uint8),
    "none": np.zeros((0, 4), dtype=np.float32),
    "ints": np.arange(3, dtype=np.int64),
    "flags": np.array([True, False]),
}


def same(found: np.ndarray, expected: np.ndarray) -> bool:
    return found.dtype == expected.dtype and found.shape == expected.shape and np.array_equal(found, expected)


def test_reads_what_the_reference_reads() -> None:
    path = data("llama-kjv/model.safetensors")
    oracle = safetensors.numpy.load_file(path)
    tensors = SafetensorsFile.open(path).tensors
    assert tensors.keys() == oracle.keys()
    for name, array in oracle.items():
        assert same(tensors[name].array(), array)
        assert tensors[name].data().tobytes() == array.tobytes()
        assert not tensors[name].data().flags.writeable


def test_writes_the_bytes_of_the_reference(tmp_path: Path) -> None:
    names = {"half": "F16", "scalar": "F32", "bytes": "U8", "none": "F32", "ints": "I64", "flags": "BOOL"}
    specs = [SafetensorsSpec(name, dtype, ARRAYS[name].shape) for name, dtype in names.items()]
    with SafetensorsWriter(tmp_path / "ours", specs, {"format": "pt"}) as writer:
        for name, array in ARRAYS.items():
            writer.write(name, 0, array)
    safetensors.numpy.save_file(ARRAYS, tmp_path / "theirs", {"format": "pt"})
    read = SafetensorsFile.open(tmp_path / "ours")
    assert read.metadata == {"format": "pt"}
    assert all(same(read.tensors[name].array(), array) for name, array in ARRAYS.items())
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_bf16_has_bytes_but_no_array(tmp_path: Path) -> None:
    with SafetensorsWriter(tmp_path / "f", [SafetensorsSpec("w", "BF16", (2,))]) as writer:
        writer.write("w", 0, b"\x80\x3f\x00\x40")
    tensor = SafetensorsFile.open(tmp_path / "f").tensors["w"]
    assert tensor.data().view("<u2").tolist() == [0x3F80, 0x4000]
    with pytest.raises(UnsupportedError, match="BF16"):
        tensor.array()


def test_a_model_folder() -> None:
    checkpoint = Checkpoint.open(data("llama-kjv"))
    assert checkpoint.config["model_type"] == "llama"
    assert checkpoint.tensors["model.embed_tokens.weight"].shape == (2048, 256)
    assert checkpoint.json("tokenizer.json")["model"]["type"] == "BPE"
    assert not checkpoint.has("hf_quant_config.json")


def test_an_adapter_folder() -> None:
    adapter = PeftFolder.open(data("llama-kjv.shakespeare"))
    assert (adapter.config["r"], adapter.config["lora_alpha"]) == (8, 16)
    a = adapter.tensors["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"]
    assert (a.shape, a.dtype) == ((8, 256), "F32")


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    first, second = {"a": ARRAYS["half"]}, {"b": ARRAYS["ints"], "c": ARRAYS["scalar"]}
    safetensors.numpy.save_file(first, tmp_path / "model-00001-of-00002.safetensors")
    safetensors.numpy.save_file(second, tmp_path / "model-00002-of-00002.safetensors")
    where = dict.fromkeys(first, "model-00001-of-00002.safetensors")
    where |= dict.fromkeys(second, "model-00002-of-00002.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return tmp_path


def edit_index(folder: Path, **where: str) -> None:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"] |= where
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_shards_are_joined(sharded: Path) -> None:
    tensors = Checkpoint.open(sharded).tensors
    assert same(tensors["a"].array(), ARRAYS["half"])
    assert same(tensors["b"].array(), ARRAYS["ints"])
    assert tensors["c"].file.name == "model-00002-of-00002.safetensors"


def test_shards_without_an_index_are_joined(sharded: Path) -> None:
    (sharded / "model.safetensors.index.json").unlink()
    assert Checkpoint.open(sharded).tensors.keys() == {"a", "b", "c"}


def test_a_missing_shard_is_named(sharded: Path) -> None:
    (sharded / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002\.safetensors: a shard .* is missing"):
        Checkpoint.open(sharded)


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "/etc/passwd", "sub/x.safetensors", "..", "", "a\\b"]
)
def test_a_shard_outside_of_the_folder_is_refused(sharded: Path, name: str) -> None:
    edit_index(sharded, d=name)
    with pytest.raises(CheckpointError, match="lies outside the folder"):
        Checkpoint.open(sharded)


def test_a_name_too_long_behind_a_missing_shard_is_refused(sharded: Path) -> None:
    edit_index(sharded, a="missing.safetensors", b="x" * 5000 + ".safetensors")
    with pytest.raises(CheckpointError, match="File name too long"):
        Checkpoint.open(sharded)


def test_an_index_that_lies_is_refused(sharded: Path) -> None:
    edit_index(sharded, a="model-00002-of-00002.safetensors")
    with pytest.raises(CheckpointError, match="tensor 'a' is not in it"):
        Checkpoint.open(sharded)


def test_a_tensor_in_two_shards_is_refused(sharded: Path) -> None:
    safetensors.numpy.save_file(
        {"b": ARRAYS["ints"], "a": ARRAYS["half"]}, sharded / "model-00001-of-00002.safetensors"
    )
    with pytest.raises(CheckpointError, match="tensor 'b' is also in another file"):
        Checkpoint.open(sharded)


@pytest.mark.parametrize("index", ["[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}', "{", "\xff"])
def test_a_malformed_index_is_refused(sharded: Path, index: str) -> None:
    (sharded / "model.safetensors.index.json").write_bytes(index.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json"):
        Checkpoint.open(sharded)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"pickled.*pytorch_model\.bin.*--allow-pickle"):
        Checkpoint.open(tmp_path)
    shutil.copy(data("llama-kjv.shakespeare/adapter_config.json"), tmp_path)
    (tmp_path / "adapter_model.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"pickled.*adapter_model\.bin"):
        PeftFolder.open(tmp_path)


def test_folders_of_the_wrong_kind(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        Checkpoint.open(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="is not a folder"):
        Checkpoint.open(data("llama-kjv/config.json"))
    with pytest.raises(CheckpointError, match="holds an adapter, not a model"):
        Checkpoint.open(data("llama-kjv.shakespeare"))
    with pytest.raises(CheckpointError, match="not a PEFT adapter"):
        PeftFolder.open(data("llama-kjv"))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="holds no weights"):
        Checkpoint.open(tmp_path)
