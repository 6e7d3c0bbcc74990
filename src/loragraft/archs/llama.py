"""Llama (Touvron et al. 2023, arXiv 2302.13971) and what shares its graph: Mistral, Mixtral."""

from __future__ import annotations

from collections.abc import Mapping

from loragraft.archs.blocks import Attention, Routed, decoder, swiglu
from loragraft.archs.hparams import Hparams
from loragraft.graph.build import GraphBuilder
from loragraft.graph.ops import Graph, TensorFact


def build(h: Hparams, tensors: Mapping[str, TensorFact]) -> Graph:
    """RMSNorm, RoPE on adjacent pairs, SwiGLU; experts where the file has them (Mixtral)."""
    return decoder(
        GraphBuilder(h.arch, tensors),
        h,
        norm=GraphBuilder.rms_norm,
        attention=Attention(pairs="adjacent"),
        feed_forward=Routed(normalize=True) if h.experts else swiglu,
    )
