"""Qwen3-MoE: QK norm, routed experts with a softmax over all and normalised weights of the chosen."""

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
    return {"expert_feed_forward_length": Value.u32(config.integer("moe_intermediate_size"))}


ARCH = Arch(
    name="qwen3moe",
    model_types=("qwen3_moe",),
    hf_class="Qwen3MoeForCausalLM",
    modules=LLAMA_MODULES | {"q_norm", "k_norm", "gate"},
    defaults={
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "max_position_embeddings": 32768,
        "num_key_value_heads": 4,
        "norm_topk_prob": False,
    },
    requires={
        "hidden_act": ("silu",),
        "norm_topk_prob": (True,),
        "decoder_sparse_step": (1,),
        "mlp_only_layers": ([],),
    },
    ignores={"use_sliding_window": (False,)},
    extra_hyperparameters=_extra_hyperparameters,
)


# ---- the graph ----


def build(h: Hparams, tensors: Mapping[str, TensorFact]) -> Graph:
    """RMSNorm, also on the heads of q and k; RoPE on halves; routed SwiGLU experts."""
    return decoder(
        GraphBuilder(h.arch, tensors),
        h,
        norm=GraphBuilder.rms_norm,
        attention=Attention(pairs="halves", head_norm=True),
        feed_forward=Routed(normalize=True),
    )
