"""Qwen2-MoE: routed experts beside a shared one behind a sigmoid gate."""

from __future__ import annotations

from collections.abc import Mapping

from loragraft.archs.base import LLAMA_MODULES, Arch
from loragraft.archs.blocks import Attention, Routed, decoder
from loragraft.archs.config import Config
from loragraft.archs.hparams import Hparams
from loragraft.formats.gguf.values import Value
from loragraft.graph.build import GraphBuilder
from loragraft.graph.ops import Graph, TensorFact

# ---- from Hugging Face ----


def _extra_hyperparameters(config: Config) -> Mapping[str, Value]:
    return {
        "expert_feed_forward_length": Value.u32(config.integer("moe_intermediate_size")),
        "expert_shared_feed_forward_length": Value.u32(config.integer("shared_expert_intermediate_size")),
    }


ARCH = Arch(
    name="qwen2moe",
    model_types=("qwen2_moe",),
    hf_class="Qwen2MoeForCausalLM",
    modules=LLAMA_MODULES | {"gate", "shared_expert_gate"},
    defaults={
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "max_position_embeddings": 32768,
        "norm_topk_prob": False,
    },
    requires={
        "hidden_act": ("silu",),
        "norm_topk_prob": (False,),
        "decoder_sparse_step": (1,),
        "mlp_only_layers": ([],),
        "qkv_bias": (True,),
    },
    ignores={"use_sliding_window": (False,)},
    extra_hyperparameters=_extra_hyperparameters,
)


# ---- the graph ----


def build(h: Hparams, tensors: Mapping[str, TensorFact]) -> Graph:
    """As Qwen2, with experts whose weights are the plain softmax, and the shared expert."""
    return decoder(
        GraphBuilder(h.arch, tensors),
        h,
        norm=GraphBuilder.rms_norm,
        attention=Attention(pairs="halves"),
        feed_forward=Routed(normalize=False),
    )
