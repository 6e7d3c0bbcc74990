"""Qwen3, dense: Qwen2 with QK norm in place of biases."""

from __future__ import annotations

from collections.abc import Mapping

from loragraft.archs.blocks import Attention, decoder, swiglu
from loragraft.archs.hparams import Hparams
from loragraft.graph.build import GraphBuilder
from loragraft.graph.ops import Graph, TensorFact

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
