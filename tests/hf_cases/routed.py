"""Families with experts of their own: gpt-oss, DeepSeek, GLM-4.5, ERNIE 4.5 and others."""

from __future__ import annotations

from hf_cases.common import ABSENT, MIXTRAL, YARN, Cases, named, rope

ROUTED = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
}
GROUPED = {**ROUTED, "n_routed_experts": 8, "n_group": 4, "topk_group": 2, "num_experts_per_tok": 3}
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
ERNIE = {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 24}
CASES: Cases = {
    "ernie": ("Ernie4_5", {"head_dim": 16}, None),
    "ernie-bias": ("Ernie4_5", {"head_dim": 16, "use_bias": True, "tie_word_embeddings": False}, None),
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
