"""Checkpoints of the small models of `golden/small-hf.npz`, under the names that transformers gives their tensors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import loragraft as lg
from loragraft.archs.graphs import build_graph, tensor_facts
from loragraft.archs.rope import rope_row_order
from loragraft.backends.reference import ReferenceBackend
from loragraft.formats.safetensors import SafetensorsFile
from loragraft.formats.views import float_rows
from loragraft.opening import open_model
from paths import arrays
from running import logits_of
from tolerances import REFERENCE, nmse

ATTENTION = {"attn_q": "q_proj", "attn_k": "k_proj", "attn_v": "v_proj", "attn_output": "o_proj"}
COMMON = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    **{ours: f"self_attn.{theirs}" for ours, theirs in ATTENTION.items()},
}
DENSE = {f"ffn_{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")}
SHARED = {f"ffn_{part}_shexp": f"mlp.shared_expert.{part}_proj" for part in ("gate", "up", "down")}
QWEN_MOE = {
    **SHARED,
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate",
    **{f"ffn_{part}_exps": f"mlp.experts.{{}}.{part}_proj" for part in ("gate", "up", "down")},
}
MIXTRAL = {
    "ffn_gate_inp": "block_sparse_moe.gate",
    "ffn_gate_exps": "block_sparse_moe.experts.{}.w1",
    "ffn_down_exps": "block_sparse_moe.experts.{}.w2",
    "ffn_up_exps": "block_sparse_moe.experts.{}.w3",
}
CONFIG = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "vocab_size": 32,
    "hidden_act": "silu",
}
EXPERTS = {"num_experts_per_tok": 2}
CASES: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "qwen3": ({**COMMON, **DENSE}, {"model_type": "qwen3", "head_dim": 8}),
    "qwen2moe": (
        {**COMMON, **QWEN_MOE},
        {
            "model_type": "qwen2_moe",
            **EXPERTS,
            "num_experts": 4,
            "moe_intermediate_size": 24,
            "shared_expert_intermediate_size": 40,
        },
    ),
    "mixtral": (
        {**COMMON, **MIXTRAL},
        {"model_type": "mixtral", "num_local_experts": 4, **EXPERTS, "rms_norm_eps": 1e-5, "rope_theta": 1e4},
    ),
}

CLASSES = {"qwen3": "Qwen3ForCausalLM", "qwen2moe": "Qwen2MoeForCausalLM", "mixtral": "MixtralForCausalLM"}


def write_checkpoint(folder: Path, case: str) -> None:
    names, config = CASES[case]
    golden = arrays("golden/small-hf.npz")
    tensors = {}
    for key in golden:
        model, _, name = key.partition(":")
        if model != case or name == "logits":
            continue
        stem, _, part = name.rpartition(".")
        prefix, _, leaf = stem.rpartition(".")
        array = golden[key]
        if case == "mixtral" and leaf in ("attn_q", "attn_k"):
            array = array[np.argsort(rope_row_order(len(array), len(array) // 8))]
        stacked = names[leaf]
        theirs = stacked if not prefix else f"model.layers.{prefix.removeprefix('blk.')}.{stacked}"
        if "{}" in theirs:
            tensors.update({f"{theirs.format(e)}.{part}": matrix.copy() for e, matrix in enumerate(array)})
        else:
            tensors[f"{theirs}.{part}"] = np.ascontiguousarray(
                array.reshape(1, -1) if leaf == "ffn_gate_inp_shexp" else array
            )
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
    vocabulary = {chr(0x21 + id_): id_ for id_ in range(32)}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    tokenizer = {"model": {"type": "BPE", "vocab": vocabulary, "merges": []}, "pre_tokenizer": byte_level}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


@pytest.mark.parametrize("case", CASES)
def test_the_checkpoint_is_the_model_of_transformers(tmp_path: Path, case: str) -> None:
    write_checkpoint(tmp_path / "m", case)
    golden = arrays("golden/small-hf.npz")
    model = open_model(tmp_path / "m")
    names = {key.partition(":")[2] for key in golden if key.startswith(f"{case}:")} - {"logits"}
    assert model.tensors.keys() == names
    for name, tensor in model.tensors.items():
        values = float_rows(tensor.rows(0, tensor.n_rows), tensor.type).reshape(-1)
        np.testing.assert_array_equal(values, golden[f"{case}:{name}"].astype(np.float32).reshape(-1), name)
    graph = build_graph(model.metadata, tensor_facts(model.tensors))
    logits = logits_of(ReferenceBackend(), graph, model.tensors, golden["ids"])
    assert nmse(logits, golden[f"{case}:logits"]) < REFERENCE


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("through", ["folder", "gguf"])
def test_exported_under_the_same_names(tmp_path: Path, case: str, through: str) -> None:
    """And with the configuration that makes transformers build the same model of them."""
    write_checkpoint(tmp_path / "m", case)
    lg.convert(tmp_path / "m", tmp_path / "m.gguf", type="F32")
    lg.export(tmp_path / ("m" if through == "folder" else "m.gguf"), tmp_path / "out")
    theirs = SafetensorsFile.open(tmp_path / "m" / "model.safetensors").tensors
    ours = SafetensorsFile.open(tmp_path / "out" / "model.safetensors").tensors
    companions = ("weight_scale", "weight_scale_2")
    assert {name for name in ours if name.rpartition(".")[2] not in companions} == theirs.keys()
    quantized = {name for name, tensor in ours.items() if tensor.dtype == "U8"}
    for name, tensor in theirs.items():
        packed = 2 if name in quantized else 1
        assert (*ours[name].shape[:-1], packed * ours[name].shape[-1]) == tensor.shape, name
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    kept = {name for name, tensor in theirs.items() if len(tensor.shape) > 1} - quantized
    assert set(config["quantization_config"]["ignore"]) == {name.removesuffix(".weight") for name in kept}
    expected = {**CONFIG, **CASES[case][1]}
    assert {key: config[key] for key in expected} == expected
    if through == "gguf":
        assert config["architectures"] == [CLASSES[case]]
