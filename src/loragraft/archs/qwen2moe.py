"""Qwen2-MoE: routed experts beside a shared one behind a sigmoid gate."""

from __future__ import annotations

from collections.abc import Mapping

from loragraft.archs.base import LLAMA_MODULES, QKV, Arch, ModelType
from loragraft.archs.blocks import Attention, Decoder, Routed
from loragraft.archs.config import Config
from loragraft.archs.windows import EVERY_OTHER_LAYER
from loragraft.formats.gguf.values import Value

# ---- from Hugging Face ----


def _extra_hyperparameters(config: Config) -> Mapping[str, Value]:
    return {
        "expert_feed_forward_length": Value.u32(config.integer("moe_intermediate_size")),
        "expert_shared_feed_forward_length": Value.u32(config.integer("shared_expert_intermediate_size")),
    }


QWEN2_MOE = ModelType(
    "qwen2_moe",
    "Qwen2MoeForCausalLM",
    defaults={
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "max_position_embeddings": 32768,
        "num_key_value_heads": 16,
        "num_experts": 60,
        "num_experts_per_tok": 4,
        "norm_topk_prob": False,
        "qkv_bias": True,
        "sliding_window": 4096,
        "max_window_layers": 28,
    },
    requires={
        "hidden_act": ("silu",),
        "norm_topk_prob": (False,),
        "decoder_sparse_step": (1,),
        "mlp_only_layers": ([],),
    },
    biases={"qkv_bias": QKV},
    windows=EVERY_OTHER_LAYER,
)
ARCH = Arch(
    name="qwen2moe",
    model_types=(QWEN2_MOE,),
    modules=LLAMA_MODULES | {"gate", "shared_expert_gate"},
    extra_hyperparameters=_extra_hyperparameters,
)

# ---- the graph: as Qwen2, with experts whose weights are the plain softmax, and the shared expert ----

build = Decoder(attention=Attention(pairs="halves"), feed_forward=Routed(normalize=False))
