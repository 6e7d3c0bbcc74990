"""Qwen2 and Qwen2.5: Llama with a bias on q, k and v, and RoPE on halves."""

from __future__ import annotations

from collections.abc import Mapping

from loragraft.archs.base import Arch
from loragraft.archs.blocks import Attention, decoder, swiglu
from loragraft.archs.hparams import Hparams
from loragraft.graph.build import GraphBuilder
from loragraft.graph.ops import Graph, TensorFact

# ---- from Hugging Face ----

ARCH = Arch(
    name="qwen2",
    model_types=("qwen2",),
    hf_class="Qwen2ForCausalLM",
    defaults={"rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 32768},
    requires={"hidden_act": ("silu",)},
    ignores={"use_sliding_window": (False,)},
)


# ---- the graph ----


def build(h: Hparams, tensors: Mapping[str, TensorFact]) -> Graph:
    """RMSNorm, RoPE on halves, SwiGLU; the biases come with the linears that have them."""
    return decoder(
        GraphBuilder(h.arch, tensors),
        h,
        norm=GraphBuilder.rms_norm,
        attention=Attention(pairs="halves"),
        feed_forward=swiglu,
    )
