"""Qwen3-MoE: QK norm, routed experts with a softmax over all and normalised weights of the chosen."""

from __future__ import annotations

from dataclasses import replace

from loragraft.archs.arch import ATTENTION, Arch, ConfigClass
from loragraft.archs.blocks import Attention, Decoder, Gated, Routed, rms_norm, routed_if_there, swiglu
from loragraft.archs.hparams import Hparams, Routing, read_decoder
from loragraft.archs.keys import Count, NormTopK, SparseLayers, usual
from loragraft.archs.keys.windows import IF_USED
from loragraft.archs.metadata import MetadataKeys
from loragraft.archs.tensors import ATTENTION as ATTENTION_TENSORS
from loragraft.archs.tensors import EXPERTS, FEED_FORWARD, HEAD_NORMS, NORMS, OUTER

QWEN3_MOE = ConfigClass(
    "qwen3_moe",
    "Qwen3MoeForCausalLM",
    keys=usual.usual_keys(
        norm=usual.rms_norm(),
        experts=True,
        windows=IF_USED,
        more=(
            Count("expert_feed_forward_length", ("moe_intermediate_size",)),
            NormTopK(True),
            SparseLayers(),
        ),
    ),
    defaults={
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "max_position_embeddings": 32768,
        "num_key_value_heads": 4,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "norm_topk_prob": False,
        "sliding_window": 4096,
    },
    biases={"attention_bias": ATTENTION},
)


def hyperparameters(keys: MetadataKeys) -> Hparams:
    return replace(read_decoder(keys), routing=Routing("softmax", keys.flag("expert_weights_norm", True)))


ARCH = Arch(
    name="qwen3moe",
    classes=(QWEN3_MOE,),
    tensors=(*OUTER, *NORMS, *ATTENTION_TENSORS, *HEAD_NORMS, *FEED_FORWARD, *EXPERTS),
    hparams=hyperparameters,
    build=Decoder(
        attention=Attention(pairs="halves", head_norm=rms_norm),
        feed_forward=routed_if_there(dense=Gated(swiglu), experts=Routed(normalize=True)),
    ),
)
