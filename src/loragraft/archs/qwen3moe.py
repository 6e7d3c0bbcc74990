"""Qwen3-MoE: QK norm, routed experts with a softmax over all and normalised weights of the chosen."""

from __future__ import annotations

from collections.abc import Mapping

from loragraft.archs.base import ATTENTION, LLAMA_MODULES, Arch, ModelType
from loragraft.archs.blocks import Attention, Decoder, Routed
from loragraft.archs.config import Config
from loragraft.archs.windows import IF_USED
from loragraft.formats.gguf.values import Value

# ---- from Hugging Face ----


def _extra_hyperparameters(config: Config) -> Mapping[str, Value]:
    return {"expert_feed_forward_length": Value.u32(config.integer("moe_intermediate_size"))}


QWEN3_MOE = ModelType(
    "qwen3_moe",
    "Qwen3MoeForCausalLM",
    defaults={
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "max_position_embeddings": 32768,
        "num_key_value_heads": 4,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "norm_topk_prob": False,
        "sliding_window": 4096,
    },
    requires={
        "hidden_act": ("silu",),
        "norm_topk_prob": (True,),
        "decoder_sparse_step": (1,),
        "mlp_only_layers": ([],),
    },
    biases={"attention_bias": ATTENTION},
    windows=IF_USED,
)
ARCH = Arch(
    name="qwen3moe",
    model_types=(QWEN3_MOE,),
    modules=LLAMA_MODULES | {"q_norm", "k_norm", "gate"},
    extra_hyperparameters=_extra_hyperparameters,
)

# ---- the graph: RMSNorm, also on the heads of q and k; RoPE on halves; routed SwiGLU experts ----

build = Decoder(attention=Attention(pairs="halves", head_norm=True), feed_forward=Routed(normalize=True))
