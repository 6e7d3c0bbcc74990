"""What `inspect` says of every kind of file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from gguf_files import write_gguf
from loragraft.errors import FormatError
from loragraft.formats.gguf.values import Value, ValueType
from loragraft.formats.split import SplitLimits
from loragraft.verbs.inspect import Kind, TensorEntry, inspect
from loragraft.verbs.split import split
from paths import data
from peft_golden import adapter_folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    metadata = {
        "general.architecture": Value.string("llama"),
        "eps": Value.f32(1e-5),
        "flag": Value.boolean(True),
        "infinite": Value.f32(float("inf")),
        "tokens": Value.strings(["a", "b"]),
        "flags": Value.numbers(ValueType.BOOL, [1, 0]),
        "nested": Value(ValueType.ARRAY, [Value.numbers(ValueType.INT8, [1, -2])], ValueType.ARRAY),
    }
    arrays = {"a.weight": np.zeros((2, 3)), "b.weight": np.zeros(4), "c.weight": np.zeros((2, 2))}
    return write_gguf(tmp_path / "model.gguf", metadata, arrays)


def test_a_gguf_model(model: Path) -> None:
    report = inspect(model)
    assert report.kind is Kind.GGUF_MODEL
    assert [(fact.key, fact.type, fact.value) for fact in report.metadata] == [
        ("general.architecture", "str", "llama"),
        ("eps", "f32", 1e-5),
        ("flag", "bool", True),
        ("infinite", "f32", "inf"),
        ("tokens", "arr[str]", ["a", "b"]),
        ("flags", "arr[bool]", [True, False]),
        ("nested", "arr[arr]", [[1, -2]]),
    ]
    assert report.tensors[0] == TensorEntry("a.weight", (2, 3), "F32", 24, model)
    assert (report.n_elements, report.nbytes, report.bits_per_element) == (14, 56, 32.0)
    assert report.types() == {"F32": (3, 56)}


def test_the_report_is_json(model: Path) -> None:
    report = json.loads(json.dumps(inspect(model).as_json(), allow_nan=False))
    assert report["kind"] == "GGUF model"
    assert report["metadata"]["eps"] == {"type": "f32", "value": 1e-05}
    assert report["tensors"][1] == {
        "name": "b.weight",
        "shape": [4],
        "type": "F32",
        "bytes": 16,
        "file": "model.gguf",
    }
    assert (report["elements"], report["bytes"], report["bits_per_element"]) == (14, 56, 32.0)


def test_one_file_of_a_split_model_stands_for_all(model: Path) -> None:
    shards = split(model, model.parent / "s", SplitLimits(max_tensors=1))
    report = inspect(shards[2].path)
    assert report.files == [shard.path for shard in shards]
    assert [(tensor.name, tensor.file) for tensor in report.tensors] == [
        ("a.weight", shards[0].path),
        ("b.weight", shards[1].path),
        ("c.weight", shards[2].path),
    ]


@pytest.mark.parametrize(
    ("name", "kind", "n_tensors", "fact"),
    [
        ("llama-kjv", Kind.CHECKPOINT, 39, ("model_type", "str", "llama")),
        ("llama-kjv.shakespeare", Kind.PEFT_ADAPTER, 56, ("r", "int", 8)),
        ("llama-kjv.shakespeare/adapter_model.safetensors", Kind.SAFETENSORS, 56, ("format", "str", "pt")),
        ("gguf/llama-kjv.merged-f16.gguf", Kind.GGUF_MODEL, 39, ("llama.block_count", "u32", 4)),
        ("gguf/llama-kjv.shakespeare-lora.gguf", Kind.GGUF_ADAPTER, 56, ("adapter.lora.alpha", "f32", 16.0)),
        ("gguf/llama-kjv.merged.imatrix.gguf", Kind.GGUF_IMATRIX, 56, ("imatrix.chunk_count", "u32", 173)),
        ("gguf/llama-kjv.merged.imatrix.dat", Kind.LEGACY_IMATRIX, 28, ("chunk_count", "i32", 173)),
    ],
)
def test_every_kind_is_recognised(
    name: str, kind: Kind, n_tensors: int, fact: tuple[str, str, object]
) -> None:
    report = inspect(data(name))
    assert report.kind is kind
    assert len(report.tensors) == n_tensors
    assert fact in [(entry.key, entry.type, entry.value) for entry in report.metadata]


def test_what_an_adapter_holds(tmp_path: Path) -> None:
    def parts(case: str) -> dict[str, int]:
        return dict(inspect(adapter_folder(case, tmp_path / case)).parts)

    assert parts("qwen2+dora") == {"halves of LoRA pairs": 28, "DoRA magnitudes": 14}
    assert parts("qwen2+lora-bias") == {"halves of LoRA pairs": 8, "biases of LoRA": 4}
    assert parts("qwen2+resized-tokens") == {
        "copies of the base's": 2,
        "rows of tokens": 2,
        "halves of LoRA pairs": 8,
    }
    assert parts("llama+saved")["whole tensors"] == 7


def test_a_sharded_checkpoint_by_its_folder_or_its_index(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    safetensors.numpy.save_file({"a": np.zeros(2, np.float16)}, tmp_path / "model-1.safetensors")
    safetensors.numpy.save_file({"b": np.zeros((), np.float64)}, tmp_path / "model-2.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}')
    report = inspect(tmp_path)
    assert report.tensors == [
        TensorEntry("a", (2,), "F16", 4, tmp_path / "model-1.safetensors"),
        TensorEntry("b", (), "F64", 8, tmp_path / "model-2.safetensors"),
    ]
    assert inspect(index).tensors == report.tensors


def test_a_configuration_with_infinity_is_still_json(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"limits": [0.0, Infinity], "deep": {"x": NaN}}')
    safetensors.numpy.save_file({"a": np.zeros(2, np.float16)}, tmp_path / "model.safetensors")
    report = json.loads(json.dumps(inspect(tmp_path).as_json(), allow_nan=False))
    assert report["metadata"]["limits"]["value"] == [0.0, "inf"]
    assert report["metadata"]["deep"]["value"] == {"x": "nan"}


def test_what_cannot_be_inspected(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    with pytest.raises(FormatError, match="found a file that begins with b'hello'"):
        inspect(tmp_path / "text")
    with pytest.raises(FormatError, match="neither a checkpoint nor an adapter"):
        inspect(tmp_path)
    with pytest.raises(FormatError, match="no such file"):
        inspect(tmp_path / "nowhere")
