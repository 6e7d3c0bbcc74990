"""Configurations with the keys that published models have: read without a note, but for what is worth one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from loragraft.archs import ARCHS
from loragraft.archs.config import Config
from loragraft.huggingface.hyperparameters import check_expressible, hyperparameters

COMMON: dict[str, Any] = {
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": [2, 3],
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.45.0",
    "use_cache": True,
}


def sizes(
    width: int, ff: int, layers: int, heads: int, kv_heads: int, context: int, vocabulary: int
) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": ff,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": context,
        "vocab_size": vocabulary,
    }


LLAMA3 = {
    "factor": 32.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
QWEN_MOE = {"decoder_sparse_step": 1, "output_router_logits": False, "router_aux_loss_coef": 0.001}
WINDOW = "config.json: sliding_window = 4096 is kept, but llama.cpp attends to everything in "
GEMMA3 = {
    "model_type": "gemma3_text",
    "architectures": ["Gemma3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_logit_softcapping": None,
    "bos_token_id": 2,
    "cache_implementation": "hybrid",
    "eos_token_id": [1, 106],
    "final_logit_softcapping": None,
    "hidden_activation": "gelu_pytorch_tanh",
    "initializer_range": 0.02,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-6,
    "rope_local_base_freq": 10000,
    "rope_theta": 1000000,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.55.0.dev0",
    "use_cache": True,
}
CASES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "Gemma 3 270M": (
        {
            **GEMMA3,
            **sizes(640, 2048, 18, 4, 1, 32768, 262144),
            "_sliding_window_pattern": 6,
            "head_dim": 256,
            "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 3,
            "query_pre_attn_scalar": 256,
            "rope_scaling": None,
            "sliding_window": 512,
            "use_bidirectional_attention": False,
        },
        [],
    ),
    "Gemma 3 27B": (
        {
            **GEMMA3,
            **sizes(5376, 21504, 62, 32, 16, 131072, 262208),
            "head_dim": 128,
            "query_pre_attn_scalar": 168,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            "sliding_window": 1024,
            "sliding_window_pattern": 6,
        },
        [],
    ),
    "Llama 3.2 1B": (
        {
            **COMMON,
            **sizes(2048, 8192, 16, 32, 8, 131072, 128256),
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": False,
            "mlp_bias": False,
            "head_dim": 64,
            "pretraining_tp": 1,
            "rms_norm_eps": 1e-5,
            "rope_scaling": LLAMA3,
            "rope_theta": 500000.0,
            "tie_word_embeddings": True,
        },
        [],
    ),
    "SmolLM2 135M": (
        {
            **COMMON,
            **sizes(576, 1536, 30, 9, 3, 8192, 49152),
            "model_type": "llama",
            "is_llama_config": True,
            "rope_interleaved": False,
            "rms_norm_eps": 1e-5,
            "rope_theta": 100000,
        },
        [],
    ),
    "LLaMA 7B": (
        {
            **COMMON,
            **sizes(4096, 11008, 32, 32, 32, 2048, 32000),
            "model_type": "llama",
            "max_sequence_length": 2048,
            "rms_norm_eps": 1e-6,
            "pad_token_id": 0,
        },
        [],
    ),
    "Mistral 7B v0.1": (
        {
            **COMMON,
            **sizes(4096, 14336, 32, 32, 8, 32768, 32000),
            "model_type": "mistral",
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "sliding_window": 4096,
        },
        [f"{WINDOW}llama: longer texts differ there"],
    ),
    "Mixtral 8x7B": (
        {
            **COMMON,
            **sizes(4096, 14336, 32, 32, 8, 32768, 32000),
            "model_type": "mixtral",
            "num_experts_per_tok": 2,
            "num_local_experts": 8,
            "output_router_logits": False,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1000000.0,
            "router_aux_loss_coef": 0.02,
            "sliding_window": None,
        },
        [],
    ),
    "Qwen2.5 7B": (
        {
            **COMMON,
            **sizes(3584, 18944, 28, 28, 4, 32768, 152064),
            "model_type": "qwen2",
            "max_window_layers": 28,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1000000.0,
            "sliding_window": 131072,
            "use_mrope": False,
            "use_sliding_window": False,
        },
        [],
    ),
    "Qwen1.5 MoE A2.7B": (
        {
            **COMMON,
            **QWEN_MOE,
            **sizes(2048, 5632, 24, 16, 16, 8192, 151936),
            "model_type": "qwen2_moe",
            "max_window_layers": 21,
            "moe_intermediate_size": 1408,
            "norm_topk_prob": False,
            "num_experts": 60,
            "num_experts_per_tok": 4,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1000000.0,
            "shared_expert_intermediate_size": 5632,
            "sliding_window": 32768,
            "use_sliding_window": False,
        },
        [],
    ),
    "Qwen3 8B with YaRN": (
        {
            **COMMON,
            **sizes(4096, 12288, 36, 32, 8, 40960, 151936),
            "model_type": "qwen3",
            "attention_bias": False,
            "head_dim": 128,
            "max_window_layers": 36,
            "rms_norm_eps": 1e-6,
            "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
            "rope_theta": 1000000,
            "sliding_window": None,
            "use_sliding_window": False,
        },
        [],
    ),
    "Qwen3 30B A3B": (
        {
            **COMMON,
            **QWEN_MOE,
            **sizes(2048, 6144, 48, 32, 4, 40960, 151936),
            "model_type": "qwen3_moe",
            "attention_bias": False,
            "head_dim": 128,
            "max_window_layers": 48,
            "mlp_only_layers": [],
            "moe_intermediate_size": 768,
            "norm_topk_prob": True,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "rms_norm_eps": 1e-6,
            "rope_theta": 1000000.0,
            "sliding_window": None,
            "use_sliding_window": False,
        },
        [],
    ),
    "StarCoder2 3B": (
        {
            **COMMON,
            **sizes(3072, 12288, 30, 24, 2, 16384, 49152),
            "model_type": "starcoder2",
            "activation_function": "gelu",
            "attention_softmax_in_fp32": True,
            "embedding_dropout": 0.1,
            "hidden_act": "gelu_pytorch_tanh",
            "layer_norm_epsilon": 1e-5,
            "mlp_type": "default",
            "norm_epsilon": 1e-5,
            "norm_type": "layer_norm",
            "residual_dropout": 0.1,
            "rope_theta": 999999.4420358813,
            "scale_attention_softmax_in_fp32": True,
            "scale_attn_weights": True,
            "sliding_window": 4096,
            "use_bias": True,
        },
        [f"{WINDOW}starcoder2: longer texts differ there"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_published_configurations_are_quiet(name: str) -> None:
    values, expected = CASES[name]
    arch, model_type = ARCHS.by_model_type(values["model_type"], values=values)
    config = Config(Path("config.json"), values, model_type.defaults)
    assert check_expressible(arch, model_type, config) == expected
    keys = hyperparameters(arch, model_type, config, 1)
    assert keys[f"{arch.name}.context_length"].data == values["max_position_embeddings"]
