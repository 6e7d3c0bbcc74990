"""Llama (Touvron et al. 2023, arXiv 2302.13971) and what shares its graph: Mistral, Mixtral."""

from __future__ import annotations

from collections.abc import Mapping

from loragraft.archs.base import LLAMA_MODULES, Arch, Mixture
from loragraft.archs.blocks import Attention, Routed, decoder, swiglu
from loragraft.archs.config import Config
from loragraft.archs.hparams import Hparams
from loragraft.archs.rope import llama3_freq_factors
from loragraft.formats.gguf.values import Value
from loragraft.graph.build import GraphBuilder
from loragraft.graph.ops import Graph, TensorFact

# ---- from Hugging Face ----


def _extra_hyperparameters(config: Config) -> Mapping[str, Value]:
    return {
        "vocab_size": Value.u32(config.integer("vocab_size")),
        "rope.dimension_count": Value.u32(config.head_dim),
    }


MIXTRAL = Mixture(
    model_type="mixtral",
    hf_class="MixtralForCausalLM",
    block="block_sparse_moe",
    router="gate",
    projections=frozenset(["w1", "w2", "w3"]),
)
ARCH = Arch(
    name="llama",
    model_types=("llama", "mistral", MIXTRAL.model_type),
    hf_class="LlamaForCausalLM",
    modules=LLAMA_MODULES | {MIXTRAL.router} | MIXTRAL.projections,
    mixture=MIXTRAL,
    defaults={"rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 2048},
    requires={"hidden_act": ("silu",), "partial_rotary_factor": (1.0, 1)},
    ignores={"sliding_window": ()},
    writes_head_dim=True,
    extra_hyperparameters=_extra_hyperparameters,
    rotary={"q_proj": "heads", "k_proj": "kv_heads"},
    rope_freqs=llama3_freq_factors,
)


# ---- the graph ----


def build(h: Hparams, tensors: Mapping[str, TensorFact]) -> Graph:
    """RMSNorm, RoPE on adjacent pairs, SwiGLU; experts where the file has them (Mixtral)."""
    return decoder(
        GraphBuilder(h.arch, tensors),
        h,
        norm=GraphBuilder.rms_norm,
        attention=Attention(pairs="adjacent"),
        feed_forward=Routed(normalize=True) if h.experts else swiglu,
    )
