"""Conversion to files: everything that llama.cpp's converters write, as they write it."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import loragraft as lg
from checkpoints import Raw, V, changed
from conversions import CASES, folder_named, golden, plain
from loragraft.cli import app
from loragraft.errors import AdapterError, OutputError
from loragraft.formats.gguf.reader import GGUFFile
from loragraft.opening import load_adapter, open_model
from loragraft.quants import e4m3
from loragraft.quants.reference import dequantize
from paths import data
from peft_golden import adapter_folder, base_folder


def contents(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metadata and tensors of a file as the golden data record them."""
    with GGUFFile.open(path) as file:
        metadata = {key: plain(value) for key, value in file.metadata.items()}
        tensors = {
            name: {
                "type": tensor.type.name,
                "shape": list(reversed(tensor.shape)),
                "sha256": hashlib.sha256(tensor.data().tobytes()).hexdigest(),
            }
            for name, tensor in file.tensors.items()
        }
    return metadata, tensors


@pytest.mark.parametrize(("fixture", "name", "folder"), CASES, ids=[case[0] for case in CASES])
def test_a_model_is_the_reference_converters_file(
    tmp_path: Path, fixture: str, name: str, folder: str
) -> None:
    lg.convert(folder_named(tmp_path, fixture, folder), tmp_path / "out.gguf")
    metadata, tensors = contents(tmp_path / "out.gguf")
    expected = golden(name)
    assert list(tensors.items()) == list(expected["tensors"].items())
    assert list(metadata.items()) == list(expected["metadata"].items())


@pytest.mark.parametrize("target", ["F16", "F32", "BF16"])
def test_a_float_type_leaves_quantized_weights_alone(tmp_path: Path, target: str) -> None:
    source = open_model(data("llama-kjv-nvfp4"))
    lg.convert(data("llama-kjv-nvfp4"), tmp_path / "out.gguf", type=target)
    with GGUFFile.open(tmp_path / "out.gguf") as file:
        assert file.tensors["token_embd.weight"].type.name == target
        assert file.metadata["general.file_type"].data == 39
        for name, tensor in source.tensors.items():
            if tensor.type.name == "NVFP4" or name.endswith("scale"):
                np.testing.assert_array_equal(file.tensors[name].data(), tensor.rows(0, tensor.n_rows), name)


@pytest.mark.parametrize(("target", "stored"), [(None, "F16"), ("Q8_0", "Q8_0"), ("BF16", "BF16")])
def test_fp8_beside_nvfp4_becomes_what_is_asked(tmp_path: Path, target: str | None, stored: str) -> None:
    codes = np.random.default_rng(3).integers(0, 0x70, (128, 256), np.uint8)

    def edit(_: dict[str, Any], tensors: dict[str, Raw]) -> None:
        del tensors[f"{V}.weight_scale_2"]
        tensors[f"{V}.weight"] = Raw.of_bytes("F8_E4M3", codes)
        tensors[f"{V}.weight_scale"] = Raw.f32(2**-8)

    source = changed(tmp_path / "m", edit)
    lg.convert(source, tmp_path / "out.gguf", type=target)
    with GGUFFile.open(tmp_path / "out.gguf") as file:
        value = file.tensors["blk.0.attn_v.weight"]
        assert value.type.name == stored
        expected = e4m3.decode(codes) * np.float32(2**-8)
        bound = (
            np.abs(expected).max() / 127 if stored == "Q8_0" else 0
        )  # four bits of mantissa fit both floats
        np.testing.assert_allclose(dequantize(value.data(), value.type), expected, rtol=0, atol=bound)
        original = open_model(source).tensors["blk.0.attn_q.weight"]
        np.testing.assert_array_equal(
            file.tensors["blk.0.attn_q.weight"].data(), original.rows(0, original.n_rows)
        )
        assert file.metadata["general.file_type"].data == 39


# ---- adapters


def test_an_adapter_is_the_reference_converters_file(tmp_path: Path) -> None:
    folder = tmp_path / "lora_r8"
    shutil.copytree(data("llama-kjv.shakespeare"), folder)
    # The model card that PEFT wrote beside the adapter when the golden file was made.
    card = "base_model: base_hf_f16\ntags:\n- base_model:adapter:base_hf_f16\n- lora\n- transformers\n"
    (folder / "README.md").write_text(f"---\n{card}pipeline_tag: text-generation\n---\n")
    report = lg.convert_adapter(folder, data("llama-kjv"), tmp_path / "out.gguf")
    assert (report.pairs, report.tensors, report.baked) == (28, 56, False)
    metadata, tensors = contents(tmp_path / "out.gguf")
    expected = golden("llama-kjv.shakespeare-lora")
    assert list(tensors.items()) == list(expected["tensors"].items())
    assert list(metadata.items()) == list(expected["metadata"].items())


@pytest.mark.parametrize(
    ("base", "adapter"),
    [
        ("qwen2-bias", "qwen2-bias.rslora"),
        ("starcoder2-bias", "starcoder2-bias.pattern"),
        ("qwen3moe-8x", "qwen3moe-8x.experts"),
    ],
)
def test_scales_that_no_alpha_can_tell(tmp_path: Path, base: str, adapter: str) -> None:
    """What llama.cpp computes, alpha / r times B A, is the adapter's; read again, it is the adapter's to the bit."""
    report = lg.convert_adapter(data(adapter), data(base), tmp_path / "out.gguf")
    model = open_model(data(base))
    original, again = load_adapter(data(adapter), model), load_adapter(tmp_path / "out.gguf", model)
    assert report.baked == (adapter == "starcoder2-bias.pattern")
    with GGUFFile.open(tmp_path / "out.gguf") as file:
        alpha = np.float32(file.metadata["adapter.lora.alpha"].data)
        for name, pair in original.pairs.items():
            found = again.pairs[name]
            np.testing.assert_array_equal(found.a, pair.a)
            np.testing.assert_array_equal(found.b, pair.b)
            assert found.scale == pair.scale
            stored = file.tensors[f"{name}.lora_b"].data().view("<f4").reshape(pair.b.shape)
            np.testing.assert_array_equal(
                alpha / np.float32(pair.rank) * stored, np.float32(pair.scale) * pair.b, name
            )


def test_what_is_not_honoured_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="holds a model, not an adapter"):
        lg.convert_adapter(data("llama-kjv"), data("llama-kjv"), tmp_path / "out.gguf")
    assert list(tmp_path.iterdir()) == []


def test_an_input_is_never_overwritten(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(data("llama-kjv"), folder)
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(OutputError):
        lg.convert(folder, folder / "model.safetensors")
    assert (folder / "model.safetensors").read_bytes() == before


# ---- the command


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["convert", *map(str, arguments)])
    return result.exit_code, result.output


def test_the_command(tmp_path: Path) -> None:
    code, text = run(data("llama-kjv"), "-o", tmp_path / "m.gguf", "--json")
    assert code == 0
    assert json.loads(text)["type"] == "F16"
    code, text = run(
        data("qwen2-bias.rslora"), "--base", data("qwen2-bias"), "-o", tmp_path / "a.gguf", "--json"
    )
    assert code == 0
    assert json.loads(text) == {
        "path": str(tmp_path / "a.gguf"),
        "kind": "gguf",
        "pairs": 21,
        "tensors": 42,
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["llama-kjv.shakespeare"], "--base"),
        (["llama-kjv.shakespeare", "--base", "llama-kjv", "--type", "Q4_0"], "F32"),
        (["llama-kjv", "--type", "Q9"], "Q9"),
    ],
)
def test_wrong_usage_ends_with_2(tmp_path: Path, arguments: list[str], message: str) -> None:
    paths = [str(data(word)) if word.startswith("llama") else word for word in arguments]
    code, text = run(*paths, "-o", tmp_path / "out.gguf")
    assert code == 2
    assert message in text


@pytest.mark.parametrize(
    ("case", "what"),
    [
        ("llama+tokens", r"holds rows of the embedding, .* found token_embd\.weight; merge it"),
        ("qwen2+lora-bias", r"holds biases, .* found blk\.0\.attn_q\.bias, .*; merge it"),
    ],
)
def test_what_a_gguf_adapter_cannot_hold(tmp_path: Path, case: str, what: str) -> None:
    base, adapter = base_folder(case, tmp_path / "base"), adapter_folder(case, tmp_path / "adapter")
    with pytest.raises(AdapterError, match=what):
        lg.convert_adapter(adapter, base, tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


def test_an_adapter_of_a_tied_output_and_back(tmp_path: Path) -> None:
    """llama.cpp does not load such a file; loragraft does."""
    base, adapter = (
        base_folder("qwen2", tmp_path / "base"),
        adapter_folder("qwen2+head", tmp_path / "adapter"),
    )
    out = tmp_path / "adapter.gguf"
    lg.convert_adapter(adapter, base, out)
    ids = np.arange(20)
    wanted = lg.load(base, [adapter], backend="reference").logits(ids)
    np.testing.assert_allclose(
        lg.load(base, [out], backend="reference").logits(ids), wanted, rtol=1e-5, atol=1e-5
    )
