"""Granite, OLMo, Cohere, EXAONE, Phi, GLM-4, Hunyuan and StarCoder2, with those of their kind that have experts."""

from __future__ import annotations

from typing import Any

from hf_cases.common import EXPERTS, YARN, Cases, named, rope, without

GRANITE = {
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.2,
    "residual_multiplier": 0.5,
    "logits_scaling": 4.0,
}
PHIMOE = {"num_local_experts": 16, "num_experts_per_tok": 2}
PHI = {"intermediate_size": 128, "num_key_value_heads": 4}
LONG = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.0, 2.0, 4.0, 8.0]}


def rotary_pct(config: dict[str, Any]) -> None:
    """As published files have it; llama.cpp's converter wants it."""
    config["rotary_pct"] = 1.0


PHI_MOE = named("architectures", ["PhiMoEForCausalLM"])
"""As the files on the hub have it."""
CASES: Cases = {
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
    "cohere": ("Cohere", {"logit_scale": 0.25}, None),
    "cohere2": ("Cohere2", {"num_hidden_layers": 4, "sliding_window": 8, "logit_scale": 0.25}, rotary_pct),
    "exaone4": (
        "Exaone4",
        {"num_hidden_layers": 4, "sliding_window": 8, "sliding_window_pattern": 4},
        None,
    ),
    "exaone4-full": (
        "Exaone4",
        {"sliding_window": None, "layer_types": ["full_attention"] * 2},
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
    "olmoe-norm": ("Olmoe", {**EXPERTS, "norm_topk_prob": True}, None),
}
