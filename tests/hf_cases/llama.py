"""Llama and what differs from it in little: Mistral, BitNet, Arcee, SmolLM3, Nemotron and others."""

from __future__ import annotations

from typing import Any

from hf_cases.common import MIXTRAL, YARN, Cases, rope, without

LLAMA4 = {
    "num_hidden_layers": 4,
    "head_dim": 8,
    "intermediate_size_mlp": 40,
    "num_local_experts": 4,
    "attention_chunk_size": 8,
    "pad_token_id": None,
}


def old_rope(config: dict[str, Any]) -> None:
    """As transformers 4 wrote it."""
    scaling = config.pop("rope_parameters")
    config["rope_theta"] = scaling.pop("rope_theta")
    scaling["type"] = scaling.pop("rope_type")
    config["rope_scaling"] = scaling


def unread(config: dict[str, Any]) -> None:
    """Keys of other models' configurations, which transformers does not read here."""
    config.update(final_logit_softcapping=5.0, attn_logit_softcapping=1.0, logit_scale=0.1)


def online(config: dict[str, Any]) -> None:
    """Masters that are rounded as they are used."""
    config["quantization_config"] = {
        "quant_method": "bitnet",
        "linear_class": "autobitlinear",
        "quantization_mode": "online",
    }


CASES: Cases = {
    "llama": ("Llama", {}, None),
    "llama-unread": ("Llama", {}, unread),
    "llama-defaults": ("Llama", {}, without("rms_norm_eps", "rope_parameters", "tie_word_embeddings")),
    "llama-head-dim": ("Llama", {"head_dim": 16}, None),
    "llama-bias": ("Llama", {"attention_bias": True, "mlp_bias": True}, None),
    "llama-tied": ("Llama", {"tie_word_embeddings": True}, None),
    "llama-gelu": ("Llama", {"hidden_act": "gelu"}, None),
    "llama-linear": ("Llama", rope("linear", factor=4.0), None),
    "llama-dynamic": ("Llama", rope("dynamic", factor=4.0), None),
    "llama-yarn": ("Llama", rope("yarn", **YARN), None),
    "llama-yarn-old": ("Llama", rope("yarn", **YARN), old_rope),
    "llama-yarn-ratio": ("Llama", rope("yarn", **{**YARN, "factor": None}), None),
    "llama-yarn-attention-factor": ("Llama", rope("yarn", attention_factor=1.0, **YARN), None),
    "llama-yarn-mscale": ("Llama", rope("yarn", mscale=0.707, mscale_all_dim=1.0, **YARN), None),
    "llama-yarn-beta": ("Llama", rope("yarn", beta_fast=16.0, beta_slow=2.0, **YARN), None),
    "llama-llama3": (
        "Llama",
        rope("llama3", **{**YARN, "factor": 8.0}, low_freq_factor=1.0, high_freq_factor=4.0),
        None,
    ),
    "llama-llama3-published": (
        "Llama",
        rope(
            "llama3",
            factor=8.0,
            original_max_position_embeddings=8192,
            rope_theta=500000.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
        )
        | {"max_position_embeddings": 131072},
        None,
    ),
    "mistral": ("Mistral", {"sliding_window": None}, None),
    "mistral-window": ("Mistral", {"sliding_window": 8}, None),
    "mixtral": ("Mixtral", MIXTRAL, None),
    "mixtral-defaults": ("Mixtral", MIXTRAL, without("rms_norm_eps", "rope_parameters", "rope_theta")),
    "mixtral-window": ("Mixtral", {**MIXTRAL, "sliding_window": 8}, None),
    "mixtral-quick-gelu": ("Mixtral", {**MIXTRAL, "hidden_act": "quick_gelu"}, None),
    "seed_oss": ("SeedOss", {"head_dim": 16}, None),
    "seed_oss-biases": (
        "SeedOss",
        {"head_dim": 8, "attention_bias": False, "attention_out_bias": True, "mlp_bias": True},
        None,
    ),
    "bitnet": ("BitNet", {}, None),
    "bitnet-online": ("BitNet", {"tie_word_embeddings": True}, online),
    "bitnet-silu": (
        "BitNet",
        {"tie_word_embeddings": True, "hidden_act": "silu", **rope("linear", factor=4.0)},
        None,
    ),
    "bitnet-bias": ("BitNet", {"attention_bias": True, "num_key_value_heads": None}, None),
    "arcee": ("Arcee", {}, None),
    "arcee-bias": ("Arcee", {"attention_bias": True, "mlp_bias": True}, None),
    "arcee-yarn": ("Arcee", {"head_dim": 16, **rope("yarn", **YARN)}, None),
    "smollm3": ("SmolLM3", {"num_hidden_layers": 4, "pad_token_id": 0}, None),
    "smollm3-bias": (
        "SmolLM3",
        {"num_hidden_layers": 4, "pad_token_id": 0, "attention_bias": True, "mlp_bias": True},
        None,
    ),
    "nemotron": ("Nemotron", {}, None),
    "nemotron-quarter": (
        "Nemotron",
        {"partial_rotary_factor": 0.25, "attention_bias": True, "mlp_bias": True},
        None,
    ),
    "nemotron-llama3": (
        "Nemotron",
        rope("llama3", **{**YARN, "factor": 8.0}, low_freq_factor=1.0, high_freq_factor=4.0)
        | {"partial_rotary_factor": 0.5, "hidden_act": "silu"},
        None,
    ),
    "stablelm": ("StableLm", {}, None),
    "stablelm-half": ("StableLm", {"use_qkv_bias": True, "partial_rotary_factor": 0.5}, None),
    "ministral": (
        "Ministral",
        {"sliding_window": 8, "head_dim": 16, "layer_types": ["sliding_attention", "full_attention"]},
        None,
    ),
    "ministral3": (
        "Ministral3",
        {
            "head_dim": 16,
            "pad_token_id": None,
            **rope(
                "yarn",
                factor=4.0,
                original_max_position_embeddings=16,
                mscale=1.0,
                mscale_all_dim=1.0,
                llama_4_scaling_beta=0.1,
            ),
        },
        None,
    ),
    "apertus": ("Apertus", {"pad_token_id": 3}, None),
    "llama4": ("Llama4Text", {**LLAMA4, "moe_layers": None}, None),
    "llama4-usual": ("Llama4Text", {**LLAMA4, "moe_layers": None, "attention_chunk_size": 8192}, None),
    "llama4-dense-between": (
        "Llama4Text",
        {
            **LLAMA4,
            "interleave_moe_layer_step": 2,
            "use_qk_norm": False,
            "attn_temperature_tuning": False,
            "no_rope_layers": [1, 0, 1, 1],
            "attention_bias": True,
        },
        None,
    ),
    "llama4-llama3": (
        "Llama4Text",
        {
            **LLAMA4,
            **rope("llama3", **{**YARN, "factor": 8.0}, low_freq_factor=1.0, high_freq_factor=4.0),
            "tie_word_embeddings": True,
            "floor_scale": 4,
            "attn_scale": 0.5,
        },
        None,
    ),
}
