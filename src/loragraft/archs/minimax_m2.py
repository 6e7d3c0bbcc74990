"""MiniMax M2: norms across all heads of q and k, RoPE on a part of each head, experts by sigmoid gates with a bias of
the choice."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from loragraft.archs.arch import Arch, ConfigClass
from loragraft.archs.blocks import Attention, Decoder, Routed, rms_norm
from loragraft.archs.config import Config
from loragraft.archs.hparams import Hparams, read_decoder, read_routing
from loragraft.archs.keys import Computed, GgufModel, HeadDim, RopeParameters, usual
from loragraft.archs.metadata import MetadataKeys
from loragraft.archs.tensors import (
    ATTENTION,
    EXPERTS,
    HEAD_NORMS,
    NORMS,
    OUTER,
    experts,
    in_layer,
    router_bias,
)
from loragraft.formats.gguf.values import Metadata, Value


def _rotary(config: Config) -> Metadata:
    """Published files have `rotary_dim`, transformers 5 writes the part."""
    part = config.rope.get("partial_rotary_factor")
    given = config.optional_integer("rotary_dim") if part is None else int(config.head_dim * part)
    return {"rope.dimension_count": Value.u32(given or config.head_dim)}


def _rotary_back(model: GgufModel) -> dict[str, Any]:
    own = model.h.layers[0]
    rotary = own.key_dim if own.rope is None else own.rope.rotary
    return {"rotary_dim": rotary, "partial_rotary_factor": rotary / own.key_dim}


def _experts_width(config: Config) -> Metadata:
    return {"expert_feed_forward_length": Value.u32(config.integer("intermediate_size"))}


class _GatingAndHeads(HeadDim):
    """Before the heads the gating, which llama.cpp needs: published files say it, transformers 5 does not."""

    def to_gguf(self, config: Config) -> Metadata:
        return {"expert_gating_func": Value.u32(2), **super().to_gguf(config)}


MINIMAX_M2 = ConfigClass(
    "minimax_m2",
    "MiniMaxM2ForCausalLM",
    keys=usual.usual_keys(
        norm=usual.rms_norm(),
        rope=RopeParameters(partial=True),
        experts=True,
        head_dim=_GatingAndHeads(),
        more=(
            Computed(frozenset(), _experts_width),
            Computed(frozenset(["rotary_dim", "partial_rotary_factor"]), _rotary, _rotary_back),
        ),
    ),
    defaults={
        "rms_norm_eps": 1e-6,
        "rope_theta": 5000000.0,
        "max_position_embeddings": 196608,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "num_local_experts": 256,
        "num_experts_per_tok": 8,
    },
    requires={
        "scoring_func": (None, "sigmoid"),
        "use_qk_norm": (None, True),
        "use_mtp": (None, False),
    },
    ignores=frozenset(
        """
        attn_type_list mtp_transformer_layers num_mtp_modules qk_norm_type use_routing_bias shared_intermediate_size
        """.split()  # noqa: SIM905
    ),
)


def hyperparameters(keys: MetadataKeys) -> Hparams:
    return replace(read_decoder(keys), routing=read_routing(keys, "sigmoid", normalize=True))


ARCH = Arch(
    name="minimax-m2",
    classes=(MINIMAX_M2,),
    tensors=(
        *OUTER,
        *NORMS,
        *ATTENTION,
        *HEAD_NORMS,
        in_layer("block_sparse_moe.gate", "ffn_gate_inp"),
        *experts("block_sparse_moe", gate="w1", down="w2", up="w3"),
        router_bias("block_sparse_moe.e_score_correction_bias"),
        *EXPERTS,
    ),
    hparams=hyperparameters,
    build=Decoder(
        attention=Attention(pairs="halves", head_norm=rms_norm),
        feed_forward=Routed(normalize=True, gating="sigmoid"),
    ),
)
