"""Models with recurrent layers."""

from __future__ import annotations

from typing import Any

from hf_cases.common import Cases

BASE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 0,
    "eos_token_id": 1,
}

LFM2 = {
    "layer_types": ["conv", "full_attention", "conv"],
    "num_hidden_layers": 3,
    "block_auto_adjust_ff_dim": False,
    "pad_token_id": None,
}
LFM2_MOE = {
    **LFM2,
    "block_auto_adjust_ff_dim": "absent",
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "num_dense_layers": 1,
}
DELTA = {
    "num_hidden_layers": 4,
    "head_dim": 16,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 40,
}
MAMBA = {
    "mamba_n_heads": 8,
    "mamba_n_groups": 2,
    "mamba_d_state": 12,
    "mamba_d_head": 8,
    "mamba_expand": 2,
    "mamba_chunk_size": 16,
}
GRANITE = {
    **MAMBA,
    "num_hidden_layers": 3,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.2,
    "residual_multiplier": 0.5,
    "logits_scaling": 4.0,
    "shared_intermediate_size": 40,
}
#: Granite 4 without Mamba layers.
ATTENDING = {
    **GRANITE,
    "num_hidden_layers": 2,
    "layer_types": ["full_attention", "full_attention"],
    "num_local_experts": 0,
    "num_experts_per_tok": 0,
}
FALCON_H1 = {
    **{key: value for key, value in MAMBA.items() if key != "mamba_expand"},
    "num_hidden_layers": 2,
    "head_dim": 16,
    "mamba_d_ssm": 64,
    "mamba_rms_norm": True,
    "mamba_norm_before_gate": False,
    "embedding_multiplier": 3.5,
    "lm_head_multiplier": 0.3,
    "attention_in_multiplier": 1.7,
    "attention_out_multiplier": 0.6,
    "key_multiplier": 0.45,
    "ssm_in_multiplier": 1.3,
    "ssm_out_multiplier": 0.7,
    "mlp_multipliers": [0.9, 0.55],
    "ssm_multipliers": [0.35, 1.25, 0.8, 1.5, 0.65],
}
BAMBA = {**MAMBA, "num_hidden_layers": 3, "attn_layer_indices": [1], "pad_token_id": None}
#: Every layer is Mamba's.
MAMBA2 = {
    **dict.fromkeys(
        ("intermediate_size", "num_attention_heads", "num_key_value_heads", "max_position_embeddings"),
        "absent",
    ),
    "num_hidden_layers": 3,
    "num_heads": 8,
    "head_dim": 8,
    "n_groups": 2,
    "state_size": 12,
    "chunk_size": 16,
}
SECTIONS = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 0]}
TYPES = ["full_attention", "linear_attention", "linear_attention"]


def published_layers(config: dict[str, Any]) -> None:
    """As published files call the kinds of layers, for the converter; transformers takes both."""
    names = {"linear_attention": "mamba", "full_attention": "attention"}
    config["layer_types"] = [names[kind] for kind in config["layer_types"]]


NEMOTRON = {
    "num_hidden_layers": "absent",
    "layers_block_type": ["linear_attention", "mlp", "full_attention", "linear_attention", "mlp"],
    "head_dim": 16,
    "mamba_num_heads": 8,
    "mamba_head_dim": 8,
    "n_groups": 2,
    "ssm_state_size": 12,
    "chunk_size": 16,
}


NEMOTRON_3 = {
    **NEMOTRON,
    "layers_block_type": ["linear_attention", "moe", "full_attention", "linear_attention", "moe"],
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "moe_shared_expert_intermediate_size": 40,
    "routed_scaling_factor": 2.5,
}


def published_pattern(config: dict[str, Any]) -> None:
    """As published files have it: letters for layers, and nothing of experts where there are none."""
    letters = {"linear_attention": "M", "full_attention": "*", "mlp": "-"}
    config["hybrid_override_pattern"] = "".join(letters[kind] for kind in config.pop("layers_block_type"))
    config["num_hidden_layers"] = len(config["hybrid_override_pattern"])
    for key in list(config):
        if "expert" in key or "moe_" in key or "topk" in key or key in ("n_group", "mtp_layers_block_type"):
            del config[key]


def published_experts(config: dict[str, Any]) -> None:
    letters = {"linear_attention": "M", "full_attention": "*", "mlp": "-", "moe": "E"}
    config["hybrid_override_pattern"] = "".join(letters[kind] for kind in config.pop("layers_block_type"))
    config["num_hidden_layers"] = len(config["hybrid_override_pattern"])
    if config["moe_latent_size"] is None:
        del config["moe_latent_size"]


CASES: Cases = {
    "lfm2": ("Lfm2", LFM2, None),
    "lfm2-adjusted": (
        "Lfm2",
        {
            **LFM2,
            "conv_L_cache": 4,
            "block_auto_adjust_ff_dim": True,
            "block_ffn_dim_multiplier": 1.5,
            "block_multiple_of": 16,
            "tie_word_embeddings": False,
        },
        None,
    ),
    "lfm2-bias": ("Lfm2", {**LFM2, "conv_bias": True}, None),
    "lfm2_moe": ("Lfm2Moe", LFM2_MOE, None),
    "lfm2_moe-plain": (
        "Lfm2Moe",
        {
            **LFM2_MOE,
            "num_dense_layers": 0,
            "conv_L_cache": 4,
            "conv_bias": True,
            "use_expert_bias": False,
            "norm_topk_prob": False,
            "routed_scaling_factor": 2.5,
            "tie_word_embeddings": False,
        },
        None,
    ),
    "qwen3_next": ("Qwen3Next", {**DELTA, **EXPERTS}, None),
    "qwen3_next-types": (
        "Qwen3Next",
        {
            **DELTA,
            **EXPERTS,
            "num_hidden_layers": 3,
            "layer_types": TYPES,
            "linear_conv_kernel_dim": 3,
            "linear_value_head_dim": 12,
            "attention_bias": True,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 500000.0,
                "partial_rotary_factor": 0.5,
            },
            "tie_word_embeddings": True,
        },
        None,
    ),
    "qwen3_next-dense": (
        "Qwen3Next",
        {**DELTA, **EXPERTS, "norm_topk_prob": False, "mlp_only_layers": [1], "decoder_sparse_step": 2},
        None,
    ),
    "qwen3_5": ("Qwen3_5Text", {**DELTA, "rope_parameters": SECTIONS}, None),
    "qwen3_5-types": (
        "Qwen3_5Text",
        {
            **DELTA,
            "num_hidden_layers": 3,
            "layer_types": TYPES,
            "linear_num_value_heads": 2,
            "linear_value_head_dim": 12,
            "linear_conv_kernel_dim": 3,
            "attention_bias": True,
            "rope_parameters": {**SECTIONS, "partial_rotary_factor": 0.5},
            "tie_word_embeddings": True,
        },
        None,
    ),
    "qwen3_5_moe": (
        "Qwen3_5MoeText",
        {**DELTA, **EXPERTS, "linear_num_value_heads": 6, "rope_parameters": SECTIONS},
        None,
    ),
    "qwen3_5-vl": (
        "Qwen3_5",
        {
            "text_config": {**BASE, **DELTA, "rope_parameters": SECTIONS},
            "vision_config": {
                "depth": 1,
                "hidden_size": 16,
                "num_heads": 2,
                "intermediate_size": 16,
                "out_hidden_size": 32,
                "patch_size": 4,
                "num_position_embeddings": 16,
            },
            "image_token_id": 0,
            "video_token_id": 0,
            "vision_start_token_id": 1,
            "vision_end_token_id": 1,
        },
        None,
    ),
    "granitehybrid": (
        "GraniteMoeHybrid",
        {**GRANITE, "num_local_experts": 4, "num_experts_per_tok": 2},
        published_layers,
    ),
    "granitehybrid-dense": (
        "GraniteMoeHybrid",
        {
            **GRANITE,
            "num_local_experts": 0,
            "num_experts_per_tok": 0,
            "mamba_n_groups": 1,
            "mamba_d_conv": 3,
            "mamba_proj_bias": True,
            "attention_bias": True,
            "tie_word_embeddings": True,
        },
        published_layers,
    ),
    "granitehybrid-rope": (
        "GraniteMoeHybrid",
        {
            **GRANITE,
            "num_local_experts": 0,
            "num_experts_per_tok": 0,
            "mamba_conv_bias": False,
            "position_embedding_type": "rope",
        },
        published_layers,
    ),
    "falcon_h1": ("FalconH1", FALCON_H1, None),
    "falcon_h1-bias": (
        "FalconH1",
        {
            **FALCON_H1,
            "mamba_rms_norm": False,
            "mamba_n_groups": 1,
            "mamba_conv_bias": False,
            "attention_bias": True,
            "mlp_bias": True,
            "mamba_proj_bias": True,
            "projectors_bias": True,
        },
        None,
    ),
    "falcon_h1-tied": (
        "FalconH1",
        {
            **FALCON_H1,
            "tie_word_embeddings": True,
            "mamba_d_conv": 3,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e11},
        },
        None,
    ),
    "granite4": (
        "GraniteMoeHybrid",
        {**ATTENDING, "position_embedding_type": "rope", "tie_word_embeddings": True},
        published_layers,
    ),
    "granite4-no-rope": ("GraniteMoeHybrid", {**ATTENDING, "attention_bias": True}, published_layers),
    "granite4-experts": (
        "GraniteMoeHybrid",
        {
            **ATTENDING,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "position_embedding_type": "rope",
        },
        published_layers,
    ),
    "granitemoeshared": (
        "GraniteMoeShared",
        {
            "num_hidden_layers": 2,
            "shared_intermediate_size": 40,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            **{key: GRANITE[key] for key in GRANITE if key.endswith(("multiplier", "scaling"))},
        },
        None,
    ),
    "bamba": ("Bamba", BAMBA, None),
    "bamba-whole": (
        "Bamba",
        {
            **BAMBA,
            "num_hidden_layers": 2,
            "tie_word_embeddings": True,
            "mamba_d_conv": 3,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0, "partial_rotary_factor": 1.0},
        },
        None,
    ),
    "bamba-bias": (
        "Bamba",
        {
            **BAMBA,
            "attention_bias": True,
            "mlp_bias": True,
            "mamba_proj_bias": True,
            "mamba_conv_bias": False,
            "mamba_n_groups": 1,
        },
        None,
    ),
    "mamba2": ("Mamba2", MAMBA2, None),
    "mamba2-tied": (
        "Mamba2",
        {**MAMBA2, "tie_word_embeddings": True, "expand": 1, "num_heads": 4, "n_groups": 1, "conv_kernel": 3},
        None,
    ),
    "mamba2-bias": ("Mamba2", {**MAMBA2, "use_bias": True, "use_conv_bias": False}, None),
    "nemotron_h": ("NemotronH", NEMOTRON, published_pattern),
    "nemotron_h-bias": (
        "NemotronH",
        {**NEMOTRON, "mlp_bias": True, "use_bias": True, "use_conv_bias": False, "conv_kernel": 3},
        published_pattern,
    ),
    "nemotron_h-attends-last": (
        "NemotronH",
        {
            **NEMOTRON,
            "layers_block_type": ["mlp", "linear_attention", "full_attention"],
            "n_groups": 1,
            "tie_word_embeddings": True,
        },
        published_pattern,
    ),
    "nemotron_h_moe": ("NemotronH", NEMOTRON_3, published_experts),
    "nemotron_h_moe-latent": (
        "NemotronH",
        {
            **NEMOTRON_3,
            "n_routed_experts": 8,
            "n_group": 4,
            "topk_group": 2,
            "moe_latent_size": 16,
            "norm_topk_prob": False,
            "routed_scaling_factor": 1.0,
        },
        published_experts,
    ),
    "nemotron_h_moe-dense-between": (
        "NemotronH",
        {**NEMOTRON_3, "layers_block_type": [*TYPES[:2], "mlp", "moe"], "mlp_bias": True},
        None,
    ),
}
