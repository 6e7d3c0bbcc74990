"""Gemma 3's folders with SentencePiece's vocabulary: what llama.cpp's converter writes of them, and the way back."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from safetensors.numpy import save_file

import loragraft as lg
from gemma3_folder import CASES, CONFIG, bf16, shapes, write_folder
from hf_configs import weights
from loragraft.formats.gguf.reader import GGUFFile
from loragraft.formats.gguf.values import Value
from loragraft.formats.safetensors import SafetensorsFile
from loragraft.formats.views import float_rows
from loragraft.inference.tokenizer import Tokenizer
from loragraft.opening import open_model
from loragraft.quants.types import BY_NAME
from paths import data
from tolerances import NATIVE_F32, nmse


def plain(value: Value) -> Any:
    """As the golden data record metadata: long arrays by their digest."""
    if isinstance(value.data, list | np.ndarray) and len(value.data) > 16:
        items = value.data if isinstance(value.data, list) else value.data.tolist()
        return [len(items), hashlib.sha256(json.dumps(items).encode()).hexdigest()]
    return value.data


@pytest.mark.parametrize("case", CASES)
def test_a_folder_becomes_the_reference_converters_file(tmp_path: Path, case: str) -> None:
    expected = json.loads(data("golden/gemma3-convert.json").read_text())[case]
    folder = write_folder(tmp_path / "tiny-gemma-3", case)
    lg.convert(folder, tmp_path / "out.gguf", type=CASES[case].upper())
    with GGUFFile.open(tmp_path / "out.gguf") as file:
        metadata = {key: plain(value) for key, value in file.metadata.items()}
        tensors = {
            name: {
                "type": tensor.type.name,
                "shape": list(reversed(tensor.shape)),
                "sha256": hashlib.sha256(tensor.data().tobytes()).hexdigest(),
            }
            for name, tensor in file.tensors.items()
        }
    assert list(metadata.items()) == list(expected["metadata"].items())
    assert list(tensors.items()) == list(expected["tensors"].items())


TEXTS = [
    "Hello  world\n\nok 42é",
    " leading, and   runs  of spaces\n\n\n",
    "<start_of_turn>user\nTo be, or not to be<end_of_turn>\n<table>",
    "日本語 under▁score \t tab",
    "",
]


@pytest.mark.parametrize("with_model", [True, False], ids=["with tokenizer.model", "tokenizer.json alone"])
def test_texts_become_the_same_tokens(tmp_path: Path, with_model: bool) -> None:
    """As the tokenizers library makes of tokenizer.json."""
    folder = write_folder(tmp_path / "m", "plain")
    if not with_model:
        (folder / "tokenizer.model").unlink()
    theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    lg.convert(folder, tmp_path / "m.gguf")
    for model in (lg.load(folder, backend="reference"), lg.load(tmp_path / "m.gguf", backend="reference")):
        assert not any("merges" in note for note in model.notes)
        for text in TEXTS:
            ids = model.tokenizer.encode(text, parse_special=True)
            assert ids.tolist() == theirs.encode(text).ids, text
            assert model.tokenizer.decode(ids) == theirs.decode(ids.tolist()), text


def test_another_vocabulary_beside_tokenizer_json_is_not_taken(tmp_path: Path) -> None:
    """tokenizer.model stays behind where a vocabulary was changed: its scores are of other tokens."""
    folder = write_folder(tmp_path / "m", "plain")
    content = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    first, second = "▁the", "▁and"
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    metadata = open_model(folder).metadata
    assert metadata["tokenizer.ggml.tokens"].data[vocabulary[first]] == first
    theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    found = Tokenizer(metadata).encode("x the and", parse_special=True).tolist()
    assert found == theirs.encode("x the and").ids


def test_an_export_is_the_same_checkpoint(tmp_path: Path) -> None:
    """Names, shapes, configuration and tokenizer from the GGUF alone; the norms less 1 again, to the bit."""
    folder = write_folder(tmp_path / "m", "scaled")
    lg.convert(folder, tmp_path / "m.gguf", type="BF16")
    lg.export(tmp_path / "m.gguf", tmp_path / "out")
    theirs = SafetensorsFile.open(folder / "model.safetensors").tensors
    ours = SafetensorsFile.open(tmp_path / "out" / "model.safetensors").tensors
    assert {name for name in ours if "weight_scale" not in name} == theirs.keys()
    drawn = weights(shapes(CONFIG), "gemma3_text")
    for name, array in drawn.items():
        if len(array.shape) > 1:
            continue
        values = float_rows(ours[name].data().reshape(1, -1), BY_NAME[ours[name].dtype]).reshape(-1)
        np.testing.assert_array_equal(values, (bf16(array) + np.float32(1)) - np.float32(1), name)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    said = {key: config[key] for key in CONFIG if key not in ("eos_token_id", "dtype")}
    assert said == {key: CONFIG[key] for key in said}
    assert config["final_logit_softcapping"] == 30.0
    assert config["layer_types"] == ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"]
    full = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0}
    sliding = {"rope_type": "default", "rope_theta": 10000.0}
    assert config["rope_parameters"] == {"full_attention": full, "sliding_attention": sliding}
    again = lg.load(tmp_path / "out", backend="reference")
    original = lg.load(folder, backend="reference")
    for text in TEXTS:
        ids = again.tokenizer.encode(text, parse_special=True)
        np.testing.assert_array_equal(ids, original.tokenizer.encode(text, parse_special=True))


def adapter_folder(folder: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """Pairs for a few linears, inside of a multimodal wrapper's names, and a norm that was trained whole."""
    rng = np.random.default_rng(5)
    all_shapes = shapes(CONFIG)
    stem = "base_model.model.model.language_model.layers"
    pairs, expected = {}, {}
    for module in ("0.self_attn.q_proj", "3.mlp.down_proj", "6.self_attn.k_proj"):
        out, columns = all_shapes[f"model.layers.{module}.weight"]
        a, b = rng.normal(0, 0.3, (2, columns)), rng.normal(0, 0.3, (out, 2))
        pairs[f"{stem}.{module}.lora_A.weight"] = a.astype(np.float32)
        pairs[f"{stem}.{module}.lora_B.weight"] = b.astype(np.float32)
        expected[f"model.layers.{module}.weight"] = 2.0 * (b @ a)
    norm = rng.normal(0, 0.3, 64).astype(np.float32)
    pairs[f"{stem}.2.pre_feedforward_layernorm.weight"] = norm
    folder.mkdir()
    save_file(pairs, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "r": 2,
        "lora_alpha": 4,
        "target_modules": ["q_proj", "k_proj", "down_proj"],
    }
    config["modules_to_save"] = ["pre_feedforward_layernorm"]
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder, {**expected, "norm": norm}


@pytest.mark.parametrize("through", ["folder", "gguf"])
def test_an_adapter_merges(tmp_path: Path, through: str) -> None:
    base = write_folder(tmp_path / "m", "plain")
    if through == "gguf":
        lg.convert(base, tmp_path / "m.gguf", type="F32")
        base = tmp_path / "m.gguf"
    adapter, deltas = adapter_folder(tmp_path / "adapter")
    lg.merge(base, adapter, tmp_path / "merged.gguf", type="F32")
    merged = open_model(tmp_path / "merged.gguf").tensors
    names = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "mlp.down_proj": "ffn_down"}
    drawn = weights(shapes(CONFIG), "gemma3_text")
    for hf, delta in deltas.items():
        if hf == "norm":
            norm = merged["blk.2.ffn_norm.weight"].rows(0, 1).view("<f4").reshape(-1)
            np.testing.assert_array_equal(norm, delta + np.float32(1))
            continue
        _, _, layer, module = hf.removesuffix(".weight").split(".", 3)
        tensor = merged[f"blk.{layer}.{names[module]}.weight"]
        values = tensor.rows(0, tensor.n_rows).view("<f4")
        np.testing.assert_allclose(values, bf16(drawn[hf]) + delta, rtol=1e-5, atol=1e-6)
    ids = np.arange(2, 40, dtype=np.int32)
    ours = lg.load(base, adapters=[adapter], backend="native", activations="f32").logits(ids)
    assert nmse(ours, lg.load(tmp_path / "merged.gguf", backend="reference").logits(ids)) < NATIVE_F32
