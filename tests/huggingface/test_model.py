"""Hugging Face folders as models: names, order, types, bytes and metadata as llama.cpp's converter gives them."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from conversions import CASES, folder_named, golden, plain
from loragraft.errors import CheckpointError, FormatError, GraphError, LoragraftError, UnsupportedError
from loragraft.formats.safetensors import SafetensorsFile, SafetensorsSpec, SafetensorsWriter
from loragraft.formats.source import ModelSource, TensorSource
from loragraft.formats.views import float_rows
from loragraft.opening import open_model
from paths import data


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


# ---- checkpoints made by hand: what the fixtures do not have


CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 1,
    "vocab_size": 2050,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 512,
    "rope_theta": 500000.0,
    "attention_bias": True,
}
LAYER = "model.layers.0"


def tiny_llama(
    folder: Path, config: dict[str, Any] | None = None, drop: tuple[str, ...] = (), kv_rows: int = 16
) -> dict[str, Any]:
    """Writes a random Llama of one layer, with biases on attention; returns its tensors."""
    rng = np.random.default_rng(11)
    shapes = {
        "model.embed_tokens.weight": (2050, 32),
        "lm_head.weight": (2050, 32),
        "model.norm.weight": (32,),
        f"{LAYER}.input_layernorm.weight": (32,),
        f"{LAYER}.post_attention_layernorm.weight": (32,),
        f"{LAYER}.self_attn.q_proj.weight": (32, 32),
        f"{LAYER}.self_attn.k_proj.weight": (kv_rows, 32),
        f"{LAYER}.self_attn.v_proj.weight": (kv_rows, 32),
        f"{LAYER}.self_attn.o_proj.weight": (32, 32),
        f"{LAYER}.self_attn.q_proj.bias": (32,),
        f"{LAYER}.self_attn.k_proj.bias": (kv_rows,),
        f"{LAYER}.self_attn.v_proj.bias": (kv_rows,),
        f"{LAYER}.mlp.gate_proj.weight": (48, 32),
        f"{LAYER}.mlp.up_proj.weight": (48, 32),
        f"{LAYER}.mlp.down_proj.weight": (32, 48),
        f"{LAYER}.self_attn.rotary_emb.inv_freq": (4,),
    }
    tensors = {
        name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items() if name not in drop
    }
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**CONFIG, **(config or {})}))
    (folder / "tokenizer.json").symlink_to(data("llama-kjv") / "tokenizer.json")
    return tensors


def values(tensor: TensorSource) -> np.ndarray:
    return float_rows(tensor.rows(0, tensor.n_rows), tensor.type).reshape(tensor.shape)


def test_rope_order_of_weights_and_biases(tmp_path: Path) -> None:
    """In a head of 8, transformers pairs element j with j + 4, GGUF's Llama 2j with 2j + 1."""
    tensors = tiny_llama(tmp_path / "m")
    model = open_model(tmp_path / "m")
    order = [0, 4, 1, 5, 2, 6, 3, 7]
    for ours, theirs, heads in (("q", "q_proj", 4), ("k", "k_proj", 2)):
        for part in ("weight", "bias"):
            original = tensors[f"{LAYER}.self_attn.{theirs}.{part}"]
            expected = original.reshape(heads, 8, -1)[:, order].reshape(original.shape)
            np.testing.assert_array_equal(values(model.tensors[f"blk.0.attn_{ours}.{part}"]), expected)
    np.testing.assert_array_equal(
        values(model.tensors["blk.0.attn_v.bias"]), tensors[f"{LAYER}.self_attn.v_proj.bias"]
    )
    assert not any("inv_freq" in name or "rope" in name for name in model.tensors)


def test_a_vocabulary_smaller_than_the_model_is_padded(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "m")
    metadata = open_model(tmp_path / "m").metadata
    assert len(metadata["tokenizer.ggml.tokens"].data) == 2050
    assert metadata["tokenizer.ggml.tokens"].data[2048:] == ["[PAD2048]", "[PAD2049]"]
    assert list(metadata["tokenizer.ggml.token_type"].data[2047:]) == [1, 5, 5]


def test_rope_scaling_of_llama_3_is_a_tensor_and_comes_first(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "m", {"rope_scaling": {"rope_type": "llama3", "factor": 32.0}})
    model = open_model(tmp_path / "m")
    assert next(iter(model.tensors)) == "rope_freqs.weight"
    freqs = model.tensors["rope_freqs.weight"]
    assert (freqs.shape, freqs.type.name) == ((4,), "F32")
    assert not any("rope.scaling" in key for key in model.metadata)


def test_yarn_is_metadata(tmp_path: Path) -> None:
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "beta_fast": 16}
    tiny_llama(tmp_path / "m", {"rope_scaling": scaling})
    metadata = {key: value.data for key, value in open_model(tmp_path / "m").metadata.items()}
    assert {key: value for key, value in metadata.items() if "rope." in key} == {
        "llama.rope.scaling.type": "yarn",
        "llama.rope.scaling.factor": 4.0,
        "llama.rope.scaling.original_context_length": 128,
        "llama.rope.scaling.yarn_beta_fast": 16.0,
        "llama.rope.freq_base": 500000.0,
        "llama.rope.dimension_count": 8,
    }


def test_defaults_of_transformers(tmp_path: Path) -> None:
    config = {"num_key_value_heads": None, "rms_norm_eps": None, "rope_theta": None, "num_attention_heads": 2}
    tiny_llama(tmp_path / "m", config, kv_rows=32)
    metadata = {key: value.data for key, value in open_model(tmp_path / "m").metadata.items()}
    assert metadata["llama.attention.head_count_kv"] == 2
    assert metadata["llama.rope.freq_base"] == 10000.0
    assert metadata["llama.attention.key_length"] == metadata["llama.rope.dimension_count"] == 16
    assert metadata["llama.attention.layer_norm_rms_epsilon"] == float(np.float32(1e-6))


@pytest.mark.parametrize("id_", [5000, -3])
def test_a_special_token_that_is_none_is_left_out(tmp_path: Path, id_: int) -> None:
    tiny_llama(tmp_path / "m", {"pad_token_id": id_})
    model = open_model(tmp_path / "m")
    assert model.notes == [f"config.json: pad_token_id {id_} is left out: the vocabulary has 2050 tokens"]
    assert "tokenizer.ggml.padding_token_id" not in model.metadata


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"model_type": "bert"}, UnsupportedError, "unknown architecture: found 'bert', expected one of"),
        ({"hidden_act": "mish"}, UnsupportedError, "unknown hidden_act: found 'mish', expected silu or"),
        (
            {"rope_scaling": {"rope_type": "longrope"}},
            UnsupportedError,
            "RoPE scaling longrope on architecture llama",
        ),
        (
            {"vocab_size": 2047},
            CheckpointError,
            "token id 2047 .* expected ids below config.json's vocab_size 2047",
        ),
        ({"num_hidden_layers": 0}, CheckpointError, "num_hidden_layers is missing or zero"),
        ({"hidden_size": "32"}, CheckpointError, "bad hidden_size: found '32'"),
        ({"num_attention_heads": 2**40}, CheckpointError, "bad num_attention_heads"),
        ({"rope_theta": -1.0}, CheckpointError, "bad rope_theta"),
        (
            {"num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 10},
            CheckpointError,
            "16 rows do not divide into 3 heads",
        ),
        ({"vocab_size": 3000}, CheckpointError, "vocab_size differs .* rows .*: found 3000, expected 2050"),
        ({"hidden_size": 64}, FormatError, "another width: found 64, expected 32"),
        ({"num_hidden_layers": 2}, FormatError, r"m: blk\.1\.attn_norm\.weight: the model lacks this tensor"),
        ({"num_key_value_heads": 1, "head_dim": 8}, GraphError, "m: .*blk.0.rope_k .*: found 8, expected 16"),
        (
            {"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"rope_type": "longrope"}},
            UnsupportedError,
            "RoPE scaling longrope on architecture llama",
        ),
    ],
)
def test_configurations_that_are_refused(
    tmp_path: Path, config: dict[str, Any], error: type[LoragraftError], message: str
) -> None:
    tiny_llama(tmp_path / "m", config)
    with pytest.raises(error, match=message) as refusal:
        open_model(tmp_path / "m")
    assert "\n" not in str(refusal.value)


def test_a_tensor_without_a_place_is_refused(tmp_path: Path) -> None:
    tensors = tiny_llama(tmp_path / "m")
    tensors["model.layers.0.self_attn.q_norm.weight"] = np.ones(8, np.float32)
    save_file(tensors, tmp_path / "m" / "model.safetensors")
    with pytest.raises(
        UnsupportedError, match=r"'model\.layers\.0\.self_attn\.q_norm\.weight' has no counterpart"
    ):
        open_model(tmp_path / "m")


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "m", drop=(f"{LAYER}.mlp.up_proj.weight",))
    with pytest.raises(FormatError, match=r"m: blk\.0\.ffn_.*: the model lacks this tensor"):
        open_model(tmp_path / "m")


def test_a_missing_expert_is_named(tmp_path: Path) -> None:
    folder = folder_named(tmp_path, "qwen3moe-8x", "m")
    file = SafetensorsFile.open(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    kept = {name: tensor for name, tensor in file.tensors.items() if ".1.mlp.experts.5.up_proj" not in name}
    specs = [SafetensorsSpec(name, tensor.dtype, tensor.shape) for name, tensor in kept.items()]
    with SafetensorsWriter(folder / "model.safetensors", specs) as writer:
        for name, tensor in kept.items():
            writer.write(name, 0, tensor.data())
    with pytest.raises(CheckpointError, match=r"blk\.1\.ffn_up_exps\.weight lacks experts: .* also \[5\]"):
        open_model(folder)


def test_fused_experts_of_transformers_5(tmp_path: Path) -> None:
    """`experts.gate_up_proj` [E, 2 ff, d] and `experts.down_proj` [E, d, ff] are the same model as single experts."""
    folder = folder_named(tmp_path, "qwen3moe-8x", "hf_qwen3moe")
    file = SafetensorsFile.open(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    stored = {name: t.data().view("<u2").reshape(t.shape) for name, t in file.tensors.items()}
    fused = {name: array for name, array in stored.items() if ".experts." not in name}
    for layer in range(3):
        stem = f"model.layers.{layer}.mlp.experts"
        gate, up, down = (
            np.stack([stored[f"{stem}.{e}.{part}_proj.weight"] for e in range(8)])
            for part in ("gate", "up", "down")
        )
        fused[f"{stem}.gate_up_proj"] = np.concatenate([gate, up], axis=1)
        fused[f"{stem}.down_proj"] = down
    specs = [SafetensorsSpec(name, "BF16", array.shape) for name, array in fused.items()]
    with SafetensorsWriter(folder / "model.safetensors", specs) as writer:
        for name, array in fused.items():
            writer.write(name, 0, np.ascontiguousarray(array))
    model, expected = open_model(folder), golden("qwen3moe-8x-f16")["tensors"]
    assert {n: as_golden(t, expected[n]["type"]) for n, t in model.tensors.items()} == expected
