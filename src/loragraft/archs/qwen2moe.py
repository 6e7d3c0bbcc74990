"""Qwen2-MoE: routed experts beside a shared one behind a sigmoid gate."""

from __future__ import annotations

from collections.abc import Mapping

from loragraft.archs.blocks import Attention, Routed, decoder
from loragraft.archs.hparams import Hparams
from loragraft.graph.build import GraphBuilder
from loragraft.graph.ops import Graph, TensorFact

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
