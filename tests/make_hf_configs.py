"""Makes golden/hf-configs.json and .npz, and hf-recurrent's; needs torch and transformers:

    python tests/make_hf_configs.py [CASE ...]

With names of cases, or how they begin, these are made anew, and what there is of the others stays.

Longer than other files: nearly all of it is one table of cases, a few lines a configuration.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file, save_file

from hf_configs import SETS, STEP, VOCABULARY, Edit, weights
from hf_recurrent import CASES as RECURRENT

GOLDEN = Path(__file__).parent / "data" / "golden"
BASE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
NORMED = {**EXPERTS, "norm_topk_prob": True}
SHARED = {**EXPERTS, "shared_expert_intermediate_size": 40}
MIXTRAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
YARN = {"factor": 4.0, "original_max_position_embeddings": 32}
WINDOW = {"use_sliding_window": True, "sliding_window": 8}
GEMMA3 = {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8, "num_hidden_layers": 7}
TYPES4 = ["sliding_attention", "full_attention"]
GEMMA4 = {
    "head_dim": 8,
    "global_head_dim": 16,
    "sliding_window": 8,
    "num_hidden_layers": 4,
    "layer_types": TYPES4 * 2,
    "hidden_size_per_layer_input": 0,
    "vocab_size_per_layer_input": VOCABULARY,
    "pad_token_id": 0,
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
        "full_attention": {
            "rope_type": "proportional",
            "partial_rotary_factor": 0.25,
            "rope_theta": 20000.0,
        },
    },
}
GEMMA3N = {
    "head_dim": 8,
    "sliding_window": 8,
    "num_hidden_layers": 5,
    "layer_types": [*TYPES4 * 2, "full_attention"],
    "hidden_size_per_layer_input": 6,
    "vocab_size_per_layer_input": VOCABULARY,
    "num_kv_shared_layers": 0,
    "laurel_rank": 5,
    "pad_token_id": 0,
}
GRANITE = {
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.2,
    "residual_multiplier": 0.5,
    "logits_scaling": 4.0,
}
ROUTED = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
}
GROUPED = {**ROUTED, "n_routed_experts": 8, "n_group": 4, "topk_group": 2, "num_experts_per_tok": 3}
PICTURES = {
    "depth": 2,
    "hidden_size": 16,
    "num_heads": 2,
    "intermediate_size": 16,
    "out_hidden_size": 32,
    "patch_size": 4,
}
CLIP = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}
#: Tokens of the vocabulary that stand for pictures; none is in the text.
QWEN_IMAGES = {
    "image_token_id": 0,
    "video_token_id": 0,
    "vision_start_token_id": 1,
    "vision_end_token_id": 1,
}
LATENT = {
    **ROUTED,
    "num_key_value_heads": 4,
    "kv_lora_rank": 16,
    "q_lora_rank": 12,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 12,
    "first_k_dense_replace": 1,
}
LATENT_GROUPS = {**LATENT, **GROUPED, "num_key_value_heads": 4, "routed_scaling_factor": 2.5}
LLAMA4 = {
    "num_hidden_layers": 4,
    "head_dim": 8,
    "intermediate_size_mlp": 40,
    "num_local_experts": 4,
    "attention_chunk_size": 8,
    "pad_token_id": None,
}
PHIMOE = {"num_local_experts": 16, "num_experts_per_tok": 2}
ERNIE = {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 24}
ABSENT = "absent"
"""For a key of BASE that the class does not have."""
NO_SIZES = dict.fromkeys(
    (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "max_position_embeddings",
    ),
    ABSENT,
)
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, **NO_SIZES}
FALCON = {"max_position_embeddings": 2048, "num_key_value_heads": ABSENT, "intermediate_size": ABSENT}
PHI = {"intermediate_size": 128, "num_key_value_heads": 4}
LONG = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.0, 2.0, 4.0, 8.0]}


def rope(kind: str, **keys: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0} | keys}


def without(*keys: str) -> Edit:
    """Leaves them out of config.json, as old files do."""

    def edit(config: dict[str, Any]) -> None:
        for key in keys:
            config.pop(key, None)
            config.get("rope_parameters", {}).pop(key, None)

    return edit


def old_rope(config: dict[str, Any]) -> None:
    """As transformers 4 wrote it."""
    scaling = config.pop("rope_parameters")
    config["rope_theta"] = scaling.pop("rope_theta")
    scaling["type"] = scaling.pop("rope_type")
    config["rope_scaling"] = scaling


def rotary_pct(config: dict[str, Any]) -> None:
    """As published files have it; llama.cpp's converter wants it."""
    config["rotary_pct"] = 1.0


def named(key: str, value: object) -> Edit:
    """Under a name of published files, which transformers writes no more."""
    return lambda config: config.update({key: value})


def unread(config: dict[str, Any]) -> None:
    """Keys of other models' configurations, which transformers does not read here."""
    config.update(final_logit_softcapping=5.0, attn_logit_softcapping=1.0, logit_scale=0.1)


def old_gemma3(config: dict[str, Any]) -> None:
    """As transformers 4 wrote it at first: two bases, one scaling, a pattern in place of layer_types."""
    ropes = config.pop("rope_parameters")
    config["rope_local_base_freq"] = ropes["sliding_attention"]["rope_theta"]
    config["rope_theta"] = ropes["full_attention"]["rope_theta"]
    config["rope_scaling"] = {"rope_type": "linear", "factor": 8.0}
    config["sliding_window_pattern"] = 3
    del config["layer_types"], config["_sliding_window_pattern"]


def online(config: dict[str, Any]) -> None:
    """Masters that are rounded as they are used."""
    config["quantization_config"] = {
        "quant_method": "bitnet",
        "linear_class": "autobitlinear",
        "quantization_mode": "online",
    }


PHI_MOE = named("architectures", ["PhiMoEForCausalLM"])
"""As the files on the hub have it."""
CASES: dict[str, tuple[str, dict[str, Any], Edit | None]] = {
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
    "qwen2": ("Qwen2", {}, None),
    "qwen2-window": ("Qwen2", {**WINDOW, "max_window_layers": 0}, None),
    "qwen2-window-above": ("Qwen2", {**WINDOW, "max_window_layers": 1}, None),
    "qwen2-window-unused": ("Qwen2", {"sliding_window": 8, "max_window_layers": 0}, None),
    "qwen2-layer-types": (
        "Qwen2",
        {**WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
        None,
    ),
    "qwen2-yarn": ("Qwen2", rope("yarn", **YARN), None),
    "qwen2-llama3": (
        "Qwen2",
        rope("llama3", **{**YARN, "factor": 8.0}, low_freq_factor=1.0, high_freq_factor=4.0),
        None,
    ),
    "qwen2moe": ("Qwen2Moe", SHARED, None),
    "qwen2moe-no-bias": ("Qwen2Moe", {**SHARED, "qkv_bias": False}, None),
    "qwen2moe-window": ("Qwen2Moe", {**SHARED, **WINDOW}, None),
    "qwen2moe-step": (
        "Qwen2Moe",
        {**SHARED, "decoder_sparse_step": 2, "num_hidden_layers": 3, "hidden_act": "gelu_new"},
        None,
    ),
    "qwen3": ("Qwen3", {"head_dim": 16}, None),
    "qwen3-bias": ("Qwen3", {"head_dim": 16, "attention_bias": True}, None),
    "qwen3-window": ("Qwen3", {"head_dim": 16, **WINDOW, "max_window_layers": 1}, None),
    "qwen3-yarn-attention-factor": (
        "Qwen3",
        {"head_dim": 16, **rope("yarn", attention_factor=0.9, **YARN)},
        None,
    ),
    "qwen3moe": ("Qwen3Moe", {**NORMED, "head_dim": 16}, None),
    "qwen3moe-no-head-dim": ("Qwen3Moe", NORMED, None),
    "qwen3moe-bias": ("Qwen3Moe", {**NORMED, "attention_bias": True}, None),
    "qwen3moe-window": ("Qwen3Moe", {**NORMED, **WINDOW}, None),
    "qwen3moe-dense": (
        "Qwen3Moe",
        {**NORMED, "head_dim": 16, "num_hidden_layers": 3, "mlp_only_layers": [1]},
        None,
    ),
    "gemma3": ("Gemma3Text", GEMMA3, None),
    "gemma3-old": ("Gemma3Text", GEMMA3, old_gemma3),
    "gemma3-defaults": (
        "Gemma3Text",
        GEMMA3,
        without(
            "rms_norm_eps",
            "rope_parameters",
            "tie_word_embeddings",
            "layer_types",
            "hidden_activation",
            "_sliding_window_pattern",
        ),
    ),
    "gemma3-layer-types": (
        "Gemma3Text",
        {
            **GEMMA3,
            "num_hidden_layers": 3,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        },
        None,
    ),
    "gemma3-scale": ("Gemma3Text", {**GEMMA3, "query_pre_attn_scalar": 40}, None),
    "gemma3-softcap": ("Gemma3Text", {**GEMMA3, "final_logit_softcapping": 3.0}, None),
    "gemma3-bias": ("Gemma3Text", {**GEMMA3, "attention_bias": True, "num_key_value_heads": 1}, None),
    "gemma3-untied": ("Gemma3Text", {**GEMMA3, "tie_word_embeddings": False}, None),
    "gemma3-ropes": (
        "Gemma3Text",
        {
            **GEMMA3,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
                "full_attention": {"rope_type": "yarn", "rope_theta": 20000.0, **YARN},
            },
        },
        None,
    ),
    "starcoder2": ("Starcoder2", {}, None),
    "starcoder2-tied-unsaid": ("Starcoder2", {}, without("tie_word_embeddings")),
    "starcoder2-untied": ("Starcoder2", {"tie_word_embeddings": False}, None),
    "starcoder2-window": ("Starcoder2", {"sliding_window": 8}, None),
    "starcoder2-no-bias": ("Starcoder2", {"use_bias": False, "hidden_act": "relu"}, None),
    "granite": ("Granite", GRANITE, None),
    "granite-bias": ("Granite", {**GRANITE, "attention_bias": True, "mlp_bias": True}, None),
    "granite-untied": ("Granite", {**GRANITE, "tie_word_embeddings": False}, None),
    "granitemoe": ("GraniteMoe", {**GRANITE, "num_local_experts": 4, "num_experts_per_tok": 2}, None),
    "olmo2": ("Olmo2", {"pad_token_id": None}, None),
    "olmo2-bias": ("Olmo2", {"attention_bias": True}, None),
    "olmo2-yarn": ("Olmo2", rope("yarn", **YARN), None),
    "olmo3": ("Olmo3", {"sliding_window": 8, "num_hidden_layers": 4}, None),
    "olmo3-types": (
        "Olmo3",
        {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
        None,
    ),
    "olmo3-yarn": ("Olmo3", {"sliding_window": 8, "num_hidden_layers": 4, **rope("yarn", **YARN)}, None),
    "olmoe": ("Olmoe", EXPERTS, None),
    "olmoe-all-heads": ("Olmoe", {**EXPERTS, "num_key_value_heads": 4}, None),
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
    "cohere": ("Cohere", {"logit_scale": 0.25}, None),
    "cohere2": ("Cohere2", {"num_hidden_layers": 4, "sliding_window": 8, "logit_scale": 0.25}, rotary_pct),
    "stablelm": ("StableLm", {}, None),
    "stablelm-half": ("StableLm", {"use_qkv_bias": True, "partial_rotary_factor": 0.5}, None),
    "exaone4": (
        "Exaone4",
        {"num_hidden_layers": 4, "sliding_window": 8, "sliding_window_pattern": 4},
        None,
    ),
    "gemma4": (
        "Gemma4Text",
        {
            **GEMMA4,
            "attention_k_eq_v": True,
            "num_global_key_value_heads": 1,
            "final_logit_softcapping": 3.0,
        },
        None,
    ),
    "gemma4-per-layer": (
        "Gemma4Text",
        {**GEMMA4, "hidden_size_per_layer_input": 6, "tie_word_embeddings": False},
        None,
    ),
    "gemma4-shared": (
        "Gemma4Text",
        {
            **GEMMA4,
            "hidden_size_per_layer_input": 6,
            "num_hidden_layers": 6,
            "layer_types": ["sliding_attention", *TYPES4 * 2, "full_attention"],
            "num_kv_shared_layers": 3,
            "use_double_wide_mlp": True,
        },
        None,
    ),
    "gemma4-experts": (
        "Gemma4Text",
        {
            **GEMMA4,
            "enable_moe_block": True,
            "num_experts": 4,
            "top_k_experts": 2,
            "moe_intermediate_size": 24,
            "attention_k_eq_v": True,
            "num_hidden_layers": 2,
            "layer_types": TYPES4,
        },
        None,
    ),
    "gemma3n": (
        "Gemma3nText",
        {
            **GEMMA3N,
            "num_kv_shared_layers": 2,
            "activation_sparsity_pattern": [0.95, 0.5, 0.0, 0.25, 0.75],
            "intermediate_size": [48, 40, 48, 56, 48],
        },
        None,
    ),
    "gemma3n-plain": (
        "Gemma3nText",
        {
            **GEMMA3N,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
                "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 20000.0},
            },
            "altup_active_idx": 1,
            "attention_bias": True,
            "final_logit_softcapping": 5.0,
            "tie_word_embeddings": False,
        },
        None,
    ),
    "gemma3n-three": (
        "Gemma3nText",
        {**GEMMA3N, "altup_num_inputs": 3, "num_hidden_layers": 2, "layer_types": TYPES4},
        without("activation_sparsity_pattern", "final_logit_softcapping", "rope_parameters"),
    ),
    "gemma3n-published": (
        "Gemma3nText",
        {
            **GEMMA3N,
            "num_hidden_layers": 2,
            "layer_types": TYPES4,
            "intermediate_size": 2048,
            "hidden_size_per_layer_input": 256,
            "laurel_rank": 64,
            "activation_sparsity_pattern": [0.95, 0.95],
        },
        None,
    ),
    "exaone4-full": (
        "Exaone4",
        {"sliding_window": None, "layer_types": ["full_attention"] * 2},
        None,
    ),
    "gemma": ("Gemma", {"head_dim": 16, "pad_token_id": 0}, None),
    "gemma2": (
        "Gemma2",
        {
            "head_dim": 16,
            "pad_token_id": 0,
            "num_hidden_layers": 4,
            "sliding_window": 8,
            "query_pre_attn_scalar": 24,
            "attn_logit_softcapping": 3.0,
            "final_logit_softcapping": 5.0,
        },
        None,
    ),
    "gemma2-usual": (
        "Gemma2",
        {"head_dim": 8, "pad_token_id": 0, "sliding_window": 8, "query_pre_attn_scalar": 8},
        None,
    ),
    "phi": ("Phi", PHI, None),
    "phi-quarter": (
        "Phi",
        {**PHI, "hidden_size": 64, "intermediate_size": 256, "partial_rotary_factor": 0.25},
        None,
    ),
    "phi3": ("Phi3", {"pad_token_id": None}, None),
    "phi3-window": ("Phi3", {"pad_token_id": None, "sliding_window": 8}, None),
    "phi3-half": (
        "Phi3",
        {"pad_token_id": None, "partial_rotary_factor": 0.5, "tie_word_embeddings": True},
        None,
    ),
    "phi3-short": (
        "Phi3",
        {
            "pad_token_id": None,
            "original_max_position_embeddings": 64,
            **rope("longrope", original_max_position_embeddings=64, **LONG),
        },
        None,
    ),
    "phi3-long": (
        "Phi3",
        {
            "pad_token_id": None,
            "original_max_position_embeddings": 32,
            **rope("longrope", original_max_position_embeddings=32, **LONG),
        },
        None,
    ),
    "phimoe": ("Phimoe", {**PHIMOE, "attention_bias": True, "lm_head_bias": True}, PHI_MOE),
    "phimoe-plain": ("Phimoe", {**PHIMOE, "sliding_window": 8, "tie_word_embeddings": True}, PHI_MOE),
    "phimoe-short": (
        "Phimoe",
        {
            **PHIMOE,
            "attention_bias": True,
            "lm_head_bias": True,
            **rope(
                "longrope",
                original_max_position_embeddings=64,
                short_mscale=1.25,
                long_mscale=1.25,
                **LONG,
            ),
        },
        PHI_MOE,
    ),
    "glm": (
        "Glm",
        {"head_dim": 8, "pad_token_id": None, "max_position_embeddings": 32, "attention_bias": True},
        None,
    ),
    "glm-wide": ("Glm", {"head_dim": 16, "pad_token_id": None, "attention_bias": False}, None),
    "glm4": ("Glm4", {"head_dim": 8, "partial_rotary_factor": 0.5, "pad_token_id": None}, None),
    "glm4-bias": ("Glm4", {"head_dim": 16, "attention_bias": True, "pad_token_id": None}, None),
    "olmo": ("Olmo", {}, None),
    "olmo-clip": ("Olmo", {"clip_qkv": 0.5}, None),
    "hunyuan": ("HunYuanDenseV1", {"head_dim": 16}, None),
    "hunyuan-bias": (
        "HunYuanDenseV1",
        {"head_dim": 8, "attention_bias": True, "tie_word_embeddings": True},
        None,
    ),
    "hunyuan-alpha": (
        "HunYuanDenseV1",
        {"head_dim": 16, "max_position_embeddings": 32768, **rope("dynamic", alpha=50.0, factor=1.0)},
        None,
    ),
    "ernie": ("Ernie4_5", {"head_dim": 16}, None),
    "ernie-bias": ("Ernie4_5", {"head_dim": 16, "use_bias": True, "tie_word_embeddings": False}, None),
    "gpt_neox": ("GPTNeoX", {"rotary_pct": 0.25}, named("rotary_pct", 0.25)),
    "gpt_neox-in-turn": (
        "GPTNeoX",
        {"rotary_pct": 0.5, "use_parallel_residual": False},
        named("rotary_pct", 0.5),
    ),
    "gpt2": ("GPT2", GPT, named("n_ctx", 128)),
    "gpt_bigcode": ("GPTBigCode", GPT, None),
    "falcon": ("Falcon", FALCON, without("num_kv_heads")),
    "falcon-groups": ("Falcon", {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}, None),
    "falcon-one-norm": (
        "Falcon",
        {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
        None,
    ),
    "gpt_oss": (
        "GptOss",
        {
            **MIXTRAL,
            "head_dim": 16,
            "sliding_window": 8,
            "pad_token_id": None,
            **rope("yarn", truncate=False, beta_fast=32.0, beta_slow=1.0, **YARN),
        },
        None,
    ),
    "gpt_oss-plain": (
        "GptOss",
        {**MIXTRAL, "head_dim": 16, "sliding_window": 8, "pad_token_id": None, **rope("default")},
        None,
    ),
    "dots1": ("Dots1", ROUTED, None),
    "dots1-all-heads": ("Dots1", {**ROUTED, "num_key_value_heads": 4}, None),
    "dots1-groups": (
        "Dots1",
        {
            **GROUPED,
            "n_shared_experts": 2,
            "first_k_dense_replace": 1,
            "norm_topk_prob": True,
            "routed_scaling_factor": 2.5,
        },
        None,
    ),
    "glm4_moe": (
        "Glm4Moe",
        {**ROUTED, "head_dim": 16, "first_k_dense_replace": 1, "num_hidden_layers": 3, "use_qk_norm": True},
        None,
    ),
    "glm4_moe-plain": (
        "Glm4Moe",
        {
            **ROUTED,
            "head_dim": 16,
            "first_k_dense_replace": 0,
            "use_qk_norm": False,
            "attention_bias": True,
            "routed_scaling_factor": 2.5,
        },
        None,
    ),
    "minimax_m2": (
        "MiniMaxM2",
        {**MIXTRAL, "head_dim": 16, "partial_rotary_factor": 0.5},
        named("rotary_dim", 8),
    ),
    "ernie-experts": ("Ernie4_5_Moe", ERNIE, None),
    "ernie-experts-wide": ("Ernie4_5_Moe", {**ERNIE, "intermediate_size": 96}, None),
    "ernie-experts-bias": (
        "Ernie4_5_Moe",
        {
            **ERNIE,
            "use_bias": True,
            "num_hidden_layers": 4,
            "moe_layer_interval": 2,
            "tie_word_embeddings": False,
        },
        None,
    ),
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
    "qwen2moe-norm": ("Qwen2Moe", {**SHARED, "norm_topk_prob": True}, None),
    "qwen3moe-no-norm": ("Qwen3Moe", {**EXPERTS, "head_dim": 16, "norm_topk_prob": False}, None),
    "olmoe-norm": ("Olmoe", {**EXPERTS, "norm_topk_prob": True}, None),
    "apertus": ("Apertus", {"pad_token_id": 3}, None),
    "qwen2_vl": (
        "Qwen2VL",
        {
            "text_config": {**BASE, **rope("default", mrope_section=[2, 1, 1])},
            "vision_config": {**PICTURES, "embed_dim": 16, "hidden_size": 32},
            **QWEN_IMAGES,
        },
        None,
    ),
    "qwen2_5_vl": (
        "Qwen2_5_VL",
        {
            "text_config": {
                **BASE,
                **rope("default", mrope_section=[2, 1, 1]),
                "tie_word_embeddings": True,
            },
            "vision_config": {**PICTURES, "fullatt_block_indexes": [1]},
            **QWEN_IMAGES,
        },
        None,
    ),
    "qwen3_vl": (
        "Qwen3VL",
        {
            "text_config": {**BASE, "head_dim": 16, **rope("default", mrope_section=[4, 2, 2])},
            "vision_config": {
                **PICTURES,
                "num_position_embeddings": 16,
                "deepstack_visual_indexes": [0],
            },
            **QWEN_IMAGES,
        },
        None,
    ),
    "qwen3_vl-sections": (
        "Qwen3VL",
        {
            "text_config": {**BASE, "head_dim": 16, **rope("default", mrope_section=[3, 3, 2])},
            "vision_config": {
                **PICTURES,
                "num_position_embeddings": 16,
                "deepstack_visual_indexes": [0],
            },
            **QWEN_IMAGES,
        },
        None,
    ),
    "qwen3_vl_moe": (
        "Qwen3VLMoe",
        {
            "text_config": {**BASE, **EXPERTS, "head_dim": 16, **rope("default", mrope_section=[3, 3, 2])},
            "vision_config": {
                **PICTURES,
                "num_position_embeddings": 16,
                "deepstack_visual_indexes": [0],
            },
            **QWEN_IMAGES,
        },
        None,
    ),
    "gemma3_vl": (
        "Gemma3",
        {
            "text_config": {**BASE, **GEMMA3, "num_hidden_layers": 3},
            "vision_config": CLIP,
            "image_token_index": 0,
            "boi_token_index": 1,
            "eoi_token_index": 1,
            "mm_tokens_per_image": 4,
        },
        None,
    ),
    "llava": (
        "Llava",
        {
            "text_config": {**BASE, "model_type": "llama"},
            "vision_config": {**CLIP, "model_type": "clip_vision_model"},
            "image_token_index": 0,
        },
        None,
    ),
    "mistral3": (
        "Mistral3",
        {
            "text_config": {**BASE, "model_type": "mistral", "head_dim": 16, "sliding_window": None},
            "vision_config": {**CLIP, "model_type": "pixtral", "head_dim": 8},
            "image_token_index": 0,
        },
        None,
    ),
    "internvl": (
        "InternVL",
        {
            "text_config": {**BASE, "model_type": "qwen2"},
            "vision_config": {**CLIP, "image_size": [16, 16], "patch_size": [4, 4]},
            "image_token_id": 0,
            "image_seq_length": 4,
        },
        None,
    ),
    "idefics3": (
        "Idefics3",
        {
            "text_config": {**BASE, "model_type": "llama", "pad_token_id": None},
            "vision_config": CLIP,
            "image_token_id": 0,
            "pad_token_id": None,
        },
        None,
    ),
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
    "bloom": ("Bloom", {**NO_SIZES, "hidden_size": 32, "n_layer": 2, "n_head": 4}, None),
    "bloom-six": (
        "Bloom",
        {**NO_SIZES, "hidden_size": 48, "n_layer": 1, "n_head": 6, "tie_word_embeddings": False},
        named("seq_length", 96),
    ),
    "mpt": (
        "Mpt",
        {**NO_SIZES, "d_model": 32, "n_layers": 2, "n_heads": 4},
        named("architectures", ["MPTForCausalLM"]),
    ),
    "mpt-six": (
        "Mpt",
        {
            **NO_SIZES,
            "d_model": 48,
            "n_layers": 1,
            "n_heads": 6,
            "max_seq_len": 64,
            "attn_config": {"clip_qkv": 0.5, "softmax_scale": 0.3},
        },
        named("architectures", ["MPTForCausalLM"]),
    ),
    "deepseek2": ("DeepseekV2", {**LATENT, "n_group": None, "topk_group": None}, None),
    "deepseek2-lite": (
        "DeepseekV2",
        {**LATENT, "q_lora_rank": None, "n_shared_experts": 2, "first_k_dense_replace": 0},
        None,
    ),
    "deepseek2-groups": (
        "DeepseekV2",
        {
            **LATENT_GROUPS,
            "topk_method": "group_limited_greedy",
            **rope("yarn", mscale=0.707, mscale_all_dim=0.707, **YARN),
        },
        None,
    ),
    "deepseek2-bias": ("DeepseekV2", {**LATENT, "attention_bias": True, **rope("yarn", **YARN)}, None),
    "deepseek3": ("DeepseekV3", LATENT_GROUPS, None),
    "deepseek3-yarn": (
        "DeepseekV3",
        {**LATENT, "norm_topk_prob": False, **rope("yarn", mscale=1.0, mscale_all_dim=1.0, **YARN)},
        None,
    ),
    "deepseek3-yarn-ratio": (
        "DeepseekV3",
        {**LATENT, "q_lora_rank": None, **rope("yarn", mscale=1.0, mscale_all_dim=0.5, **YARN)},
        None,
    ),
    "glm4_moe_lite": ("Glm4MoeLite", {**LATENT, "first_k_dense_replace": ABSENT}, None),
    "glm4_moe_lite-groups": (
        "Glm4MoeLite",
        {
            **LATENT_GROUPS,
            "first_k_dense_replace": ABSENT,
            "num_hidden_layers": 3,
            "mlp_layer_types": ["dense", "dense", "sparse"],
        },
        None,
    ),
}


def idle(config: Any) -> dict[str, list[int]]:
    """What published checkpoints have and no layer takes up: Gemma 3n's keys and values of layers with another's."""
    if config.model_type != "gemma3n_text":
        return {}
    rows, layers = config.num_key_value_heads * config.head_dim, config.num_hidden_layers
    shapes = {"k_proj": [rows, config.hidden_size], "v_proj": [rows, config.hidden_size]}
    shapes["k_norm"] = [config.head_dim]
    return {
        f"model.layers.{layer}.self_attn.{name}.weight": shape
        for layer in range(layers - config.num_kv_shared_layers, layers)
        for name, shape in shapes.items()
    }


def run(kind: str, keys: dict[str, Any], edit: Edit | None, ids: torch.Tensor) -> tuple[dict[str, Any], Any]:
    base = {} if "text_config" in keys else BASE
    said = {key: value for key, value in {**base, **keys}.items() if value != ABSENT}
    config = getattr(transformers, f"{kind}Config")(**said)
    auto = transformers.AutoModelForImageTextToText if not base else transformers.AutoModelForCausalLM
    model = auto.from_config(config)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        saved = Path(folder) / "model.safetensors"
        shapes = {name: list(tensor.shape) for name, tensor in sorted(load_file(saved).items())}
        shapes = dict(sorted((shapes | idle(config)).items()))
        language = config.text_config if not base else config
        save_file(weights(shapes, language.model_type), saved, {"format": "pt"})
        path = Path(folder) / "config.json"
        written = json.loads(path.read_text())
        if edit is not None:
            edit(written)
        path.write_text(json.dumps(written))
        model = auto.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
        with torch.no_grad():
            logits = model(ids).logits[0, ::STEP].numpy()
    return {"config": written, "shapes": shapes}, logits


def main() -> None:
    """Those of `SETS` that the command line names, or all."""
    torch.set_num_threads(1)
    # activations stay as they are: docs/decisions/0010-bitnet-activations.md
    transformers.integrations.bitnet.ActQuant.apply = lambda activation: activation
    transformers.logging.set_verbosity_error()
    ids = np.random.default_rng(0).integers(2, VOCABULARY, 48)
    chosen = tuple(sys.argv[1:])
    for name, cases in zip(SETS, (CASES, RECURRENT), strict=True):
        wanted = {case: spec for case, spec in cases.items() if not chosen or case.startswith(chosen)}
        if not wanted:
            continue
        found, logits = {}, {}
        if chosen:
            found = json.loads((GOLDEN / f"{name}.json").read_text())
            logits = dict(np.load(GOLDEN / f"{name}.npz"))
        for case, spec in wanted.items():
            found[case], logits[case] = run(*spec, torch.tensor(ids[None]))
        text = json.dumps({case: found[case] for case in cases}, separators=(",", ":"))
        (GOLDEN / f"{name}.json").write_text(text.replace('},"', '},\n"') + "\n")
        np.savez_compressed(GOLDEN / f"{name}.npz", ids=ids, **{case: logits[case] for case in cases})


if __name__ == "__main__":
    main()
