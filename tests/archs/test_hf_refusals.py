"""Configurations that are refused, or said something of, and those that are silent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import loragraft as lg
from archs.test_hf_configs import notes_of, write


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("llama", []),
        (
            "llama-unread",
            ["transformers' LlamaForCausalLM does not read attn_logit_softcapping, final_logit_so"],
        ),
        (
            "llama-dynamic",
            ["dynamic RoPE scaling is left out: texts longer than the context of 128 tokens are"],
        ),
        ("llama-gelu", ["hidden_act = 'gelu' is kept, but llama.cpp computes llama with silu"]),
        ("llama4", ["attention_chunk_size kept, but llama.cpp computes with chunks of 8192"]),
        ("phi3-window", ["sliding_window = 8 is kept, but llama.cpp attends to everything in phi3"]),
        (
            "exaone4",
            ["sliding_window = 8 is kept, but llama.cpp attends to everything in exaone4 of other than 64"],
        ),
        ("exaone4-full", []),
        ("gpt_oss", ["YaRN's ramp is not cut to whole pairs, as in transformers; llama.cpp cuts it"]),
        ("gpt_oss-plain", []),
        ("mpt-six", ["attn_config.softmax_scale is kept, but llama.cpp computes mpt"]),
        ("qwen2-llama3", ["Llama 3's RoPE scaling is kept"]),
        ("qwen3moe-dense", ["1 layers have no experts (the first is 1): they are kept, but llama.cpp"]),
        ("llama-yarn-attention-factor", []),
        (
            "llama-yarn-beta",
            ["YaRN's beta_fast = 16, beta_slow = 2 is kept, but llama.cpp computes with 32 and 1"],
        ),
        ("gemma3", []),
        ("gemma3-layer-types", []),
        ("gemma3-scale", ["query_pre_attn_scalar = 40 is kept, but llama.cpp computes with the usual scale"]),
        ("mistral-window", ["sliding_window = 8 is kept, but llama.cpp attends to everything in llama"]),
        ("qwen2-layer-types", ["sliding_window = 8 is kept, but llama.cpp attends to everything in qwen2"]),
        ("qwen2-window-unused", []),
        ("qwen3moe", []),
        (
            "qwen2moe-norm",
            ["norm_topk_prob = True is kept, but llama.cpp computes qwen2moe as if it were False"],
        ),
        ("starcoder2", []),
    ],
)
def test_the_notes_on_a_configuration(tmp_path: Path, case: str, said: list[str]) -> None:
    notes = notes_of(write(tmp_path / "m", case))
    assert [note[: len(start)] for note, start in zip(notes, said, strict=True)] == said


def test_mistral_has_a_window_unless_it_says_null(tmp_path: Path) -> None:
    def silent(config: dict[str, Any], tensors: dict[str, Any]) -> None:
        del config["sliding_window"]
        config["max_position_embeddings"] = 8192

    lg.convert(write(tmp_path / "m", "mistral", silent), tmp_path / "m.gguf")
    assert lg.load(tmp_path / "m.gguf").source.metadata["llama.attention.sliding_window"].data == 4096


REFUSED: dict[str, tuple[str, dict[str, Any], tuple[str, ...], str]] = {
    "yarn without a factor": (
        "llama",
        {"rope_parameters": {"rope_type": "yarn"}},
        (),
        "RoPE scaling yarn without a factor",
    ),
    "linear without a factor": (
        "llama",
        {"rope_scaling": {"type": "linear"}},
        (),
        "RoPE scaling linear without a factor",
    ),
    "linear with a null factor": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "factor": None}},
        (),
        "RoPE scaling linear without a factor",
    ),
    "truncate": (
        "llama",
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "truncate": False}},
        (),
        "YaRN whose ramp is not cut to whole pairs.*: found truncate = False",
    ),
    "partial": (
        "qwen2",
        {"partial_rotary_factor": 0.5},
        (),
        "partial rotary embedding, in qwen2: found 0.5",
    ),
    "nested": (
        "qwen3",
        {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
        (),
        "RoPE that differs between layers: found rope_parameters.full_attention",
    ),
    "layers": (
        "llama",
        {"num_hidden_layers": 2**31 - 1},
        (),
        "more layers than any model has: found 2147483647",
    ),
    "factor": ("llama", {"rope_scaling": {"type": "linear", "factor": -1}}, (), "bad factor: found -1"),
    "untied without an output": (
        "llama",
        {},
        ("lm_head.weight",),
        "lacks lm_head.weight: expected it, or tie_word_embeddings in config.json",
    ),
    "biases without their flag": (
        "llama-bias",
        {"mlp_bias": False},
        (),
        r"has blk.0.ffn_\w+.bias, which LlamaForCausalLM would leave out: found mlp_bias = False; if .*, set mlp_bias",
    ),
    "biases without a flag": (
        "llama-bias",
        {"model_type": "mistral"},
        (),
        r"has blk.0.\w+.bias, which MistralForCausalLM would leave out",
    ),
    "a scale of nothing": (
        "gemma3",
        {"query_pre_attn_scalar": 0},
        (),
        "bad query_pre_attn_scalar: found 0.0, expected a number > 0",
    ),
    "a pattern of nothing": (
        "gemma3-old",
        {"sliding_window_pattern": 0},
        (),
        "sliding_window_pattern is missing or zero: found 0",
    ),
    "two ropes of a kind that GGUF has for one": (
        "gemma3",
        {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
        (),
        "RoPE of this kind in layers of sliding attention",
    ),
    "layer types": (
        "qwen2",
        {"layer_types": ["chunked_attention"] * 2},
        (),
        "bad layer_types: found .*chunked",
    ),
    "layer types without a window": (
        "qwen2",
        {"layer_types": ["sliding_attention"] * 2},
        (),
        "layer_types has sliding_attention, but there is no sliding_window",
    ),
    "an activation": (
        "llama",
        {"hidden_act": "mish"},
        (),
        "unknown hidden_act: found 'mish', expected silu or gelu",
    ),
    "layers that attend": ("bamba", {"attn_layer_indices": [7]}, (), r"bad attn_layer_indices: found \[7\]"),
    "heads of Mamba": (
        "mamba2",
        {"num_heads": 4},
        (),
        "is not expand times hidden_size: found 32, expected 64",
    ),
    "layers without experts": ("qwen3moe-dense", {"mlp_only_layers": 1}, (), "bad mlp_only_layers: found 1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(tmp_path: Path, name: str) -> None:
    case, changes, dropped, message = REFUSED[name]

    def edit(config: dict[str, Any], tensors: dict[str, Any]) -> None:
        config.update(changes)
        for tensor in dropped:
            del tensors[tensor]

    with pytest.raises(lg.LoragraftError, match=message) as refusal:
        lg.load(write(tmp_path / "m", case, edit))
    assert "\n" not in str(refusal.value)


def test_an_output_beside_a_tied_embedding(tmp_path: Path) -> None:
    """The note is for one that differs."""

    def own(config: dict[str, Any], tensors: dict[str, Any]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + np.float32(1)

    def same(config: dict[str, Any], tensors: dict[str, Any]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()

    [note] = notes_of(write(tmp_path / "own", "llama-tied", own))
    assert note.startswith("tie_word_embeddings is true, but lm_head.weight is not the embedding: it is kept")
    assert notes_of(write(tmp_path / "same", "llama-tied", same)) == []


def test_numbers_of_each_layer_that_are_missing(tmp_path: Path) -> None:
    def drop(config: dict[str, Any], tensors: dict[str, Any]) -> None:
        del tensors["model.layers.1.mlp.act_fn.beta"]

    with pytest.raises(
        lg.LoragraftError, match=r"m: lacks xielu\.beta of some layers: found \[0\], expected 2"
    ):
        lg.load(write(tmp_path / "m", "apertus", drop))


def test_an_embedding_for_each_layer_has_every_token(tmp_path: Path) -> None:
    def shorten(config: dict[str, Any], tensors: dict[str, Any]) -> None:
        name = "model.embed_tokens_per_layer.weight"
        tensors[name] = tensors[name][:10].copy()

    with pytest.raises(lg.LoragraftError, match=r"lacks rows of the vocabulary: found 10, expected 64"):
        lg.load(write(tmp_path / "m", "gemma4-per-layer", shorten))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("num_kv_shared_layers", 6, "bad num_kv_shared_layers: found 6, expected less than 6"),
        ("num_kv_shared_layers", 5, "no earlier layer of the same kind has keys: found 5"),
        ("enable_moe_block", True, "num_experts is missing or zero"),
        ("layer_types", ["full_attention"], "bad layer_types"),
        (
            "per_layer_config",
            {"0": {"head_dim": 16}},
            "per_layer_config of other layers than those with full",
        ),
        (
            "rope_parameters",
            {
                kind: {"rope_type": "yarn", "rope_theta": 1e4}
                for kind in ("full_attention", "sliding_attention")
            },
            "RoPE of this kind",
        ),
    ],
)
def test_what_is_refused_of_gemma_4(tmp_path: Path, key: str, value: Any, said: str) -> None:
    with pytest.raises(lg.LoragraftError, match=said):
        lg.load(write(tmp_path / "m", "gemma4-shared", lambda config, tensors: config.update({key: value})))


def test_gemma_4_has_two_ropes_where_its_configuration_is_silent(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", "gemma4", lambda config, tensors: config.pop("rope_parameters"))
    metadata = lg.load(folder).source.metadata
    assert metadata["gemma4.rope.freq_base"].data == 1e6
    assert metadata["gemma4.rope.freq_base_swa"].data == 1e4


def test_phi_moe_as_it_was_published(tmp_path: Path) -> None:
    """With `rope_scaling` and the original context beside it; scales that differ are refused."""

    def published(config: dict[str, Any], tensors: dict[str, Any]) -> None:
        rope = config.pop("rope_parameters")
        config["original_max_position_embeddings"] = rope.pop("original_max_position_embeddings")
        config["rope_theta"] = rope.pop("rope_theta")
        config["rope_scaling"] = {"type": rope.pop("rope_type"), **rope}

    def differing(config: dict[str, Any], tensors: dict[str, Any]) -> None:
        config["rope_parameters"]["long_mscale"] = 1.5

    old, new = (
        lg.load(write(tmp_path / name, "phimoe-short", edit)).source.metadata
        for name, edit in (("old", published), ("new", None))
    )
    assert {key: old[key].data for key in old if key.startswith("phimoe.")} == {
        key: new[key].data for key in new if key.startswith("phimoe.")
    }
    with pytest.raises(lg.LoragraftError, match=r"that differ: found 1.25 and 1.5, expected the same number"):
        lg.load(write(tmp_path / "m", "phimoe-short", differing))
    with pytest.raises(lg.LoragraftError, match="SparseMixer takes two experts: found 3, expected 2"):
        lg.load(write(tmp_path / "k", "phimoe", lambda config, tensors: config.update(num_experts_per_tok=3)))
    with pytest.raises(lg.LoragraftError, match="router_jitter_noise"):
        lg.load(
            write(tmp_path / "j", "phimoe", lambda config, tensors: config.update(router_jitter_noise=0.1))
        )
