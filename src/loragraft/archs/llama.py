"""Llama (Touvron et al. 2023, arXiv 2302.13971) and what shares its graph: Mistral, Mixtral."""

from __future__ import annotations

from collections.abc import Mapping

from loragraft.archs.base import ATTENTION, FEED_FORWARD, LLAMA_MODULES, Arch, Mixture, ModelType
from loragraft.archs.blocks import Attention, Decoder, Routed, swiglu
from loragraft.archs.config import Config
from loragraft.archs.rope import llama3_freq_factors
from loragraft.archs.windows import EVERY_LAYER
from loragraft.formats.gguf.values import Value

# ---- from Hugging Face ----


def _extra_hyperparameters(config: Config) -> Mapping[str, Value]:
    return {
        "vocab_size": Value.u32(config.integer("vocab_size")),
        "rope.dimension_count": Value.u32(config.head_dim),
    }


LLAMA = ModelType(
    "llama",
    "LlamaForCausalLM",
    defaults={"rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 2048},
    requires={"hidden_act": ("silu",)},
    biases={"attention_bias": ATTENTION, "mlp_bias": FEED_FORWARD},
)
MISTRAL = ModelType(
    "mistral",
    "MistralForCausalLM",
    defaults={
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
    },
    requires={"hidden_act": ("silu",)},
    windows=EVERY_LAYER,
)
MIXTRAL = Mixture(
    ModelType(
        "mixtral",
        "MixtralForCausalLM",
        defaults={
            "rms_norm_eps": 1e-5,
            "rope_theta": 1000000.0,
            "max_position_embeddings": 131072,
            "num_key_value_heads": 8,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
        },
        requires={"hidden_act": ("silu",)},
        windows=EVERY_LAYER,
    ),
    block="block_sparse_moe",
    router="gate",
    projections=frozenset(["w1", "w2", "w3"]),
)
ARCH = Arch(
    name="llama",
    model_types=(LLAMA, MISTRAL),
    modules=LLAMA_MODULES | {MIXTRAL.router} | MIXTRAL.projections,
    mixture=MIXTRAL,
    writes_head_dim=True,
    extra_hyperparameters=_extra_hyperparameters,
    rotary={"q_proj": "heads", "k_proj": "kv_heads"},
    rope_freqs=llama3_freq_factors,
)

# ---- the graph: RMSNorm, RoPE on adjacent pairs, SwiGLU ----

build = Decoder(attention=Attention(pairs="adjacent"), feed_forward=swiglu, experts=Routed(normalize=True))
