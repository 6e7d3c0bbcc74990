"""Qwen3, dense: Qwen2 with QK norm in place of biases."""

from __future__ import annotations

from collections.abc import Mapping

from loragraft.archs.base import LLAMA_MODULES, Arch
from loragraft.archs.blocks import Attention, decoder, swiglu
from loragraft.archs.hparams import Hparams
from loragraft.graph.build import GraphBuilder
from loragraft.graph.ops import Graph, TensorFact

# ---- from Hugging Face ----

ARCH = Arch(
    name="qwen3",
    model_types=("qwen3",),
    hf_class="Qwen3ForCausalLM",
    modules=LLAMA_MODULES | {"q_norm", "k_norm"},
    defaults={
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "max_position_embeddings": 32768,
        "head_dim": 128,
    },
    requires={"hidden_act": ("silu",)},
    ignores={"use_sliding_window": (False,)},
)

# ---- the graph ----


def build(h: Hparams, tensors: Mapping[str, TensorFact]) -> Graph:
    """RMSNorm, also on the heads of q and k; RoPE on halves; SwiGLU."""
    return decoder(
        GraphBuilder(h.arch, tensors),
        h,
        norm=GraphBuilder.rms_norm,
        attention=Attention(pairs="halves", head_norm=True),
        feed_forward=swiglu,
    )
