"""Qwen 2 and 3, dense and with experts."""

from __future__ import annotations

from hf_cases.common import EXPERTS, YARN, Cases, rope

NORMED = {**EXPERTS, "norm_topk_prob": True}
SHARED = {**EXPERTS, "shared_expert_intermediate_size": 40}
WINDOW = {"use_sliding_window": True, "sliding_window": 8}
CASES: Cases = {
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
    "qwen2moe-norm": ("Qwen2Moe", {**SHARED, "norm_topk_prob": True}, None),
    "qwen3moe-no-norm": ("Qwen3Moe", {**EXPERTS, "head_dim": 16, "norm_topk_prob": False}, None),
}
