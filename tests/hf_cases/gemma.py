"""Gemma 1 to 4 and 3n."""

from __future__ import annotations

from typing import Any

from hf_cases.common import YARN, Cases, without
from hf_configs import VOCABULARY

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


def old_gemma3(config: dict[str, Any]) -> None:
    """As transformers 4 wrote it at first: two bases, one scaling, a pattern in place of layer_types."""
    ropes = config.pop("rope_parameters")
    config["rope_local_base_freq"] = ropes["sliding_attention"]["rope_theta"]
    config["rope_theta"] = ropes["full_attention"]["rope_theta"]
    config["rope_scaling"] = {"rope_type": "linear", "factor": 8.0}
    config["sliding_window_pattern"] = 3
    del config["layer_types"], config["_sliding_window_pattern"]


CASES: Cases = {
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
}
