"""Qwen2-MoE: routed experts beside a shared one behind a sigmoid gate."""

from __future__ import annotations

from dataclasses import replace

from loragraft.archs.arch import QKV, Arch, ConfigClass
from loragraft.archs.blocks import Attention, Decoder, Gated, Routed, routed_if_there, swiglu
from loragraft.archs.hparams import Hparams, Routing, read_decoder
from loragraft.archs.keys import Count, NormTopK, SparseLayers
from loragraft.archs.keys.usual import rms_norm, usual_keys
from loragraft.archs.keys.windows import EVERY_OTHER_LAYER
from loragraft.archs.metadata import MetadataKeys
from loragraft.archs.tensors import ATTENTION, EXPERTS, FEED_FORWARD, NORMS, OUTER, SHARED_EXPERT
from loragraft.graph.llama_cpp import PublishedArch, drops_expert_scales

QWEN2_MOE = ConfigClass(
    "qwen2_moe",
    "Qwen2MoeForCausalLM",
    keys=usual_keys(
        norm=rms_norm(),
        experts=True,
        windows=EVERY_OTHER_LAYER,
        more=(
            Count("expert_feed_forward_length", ("moe_intermediate_size",)),
            Count("expert_shared_feed_forward_length", ("shared_expert_intermediate_size",)),
            NormTopK(False),
            SparseLayers(),
        ),
    ),
    defaults={
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "max_position_embeddings": 32768,
        "num_key_value_heads": 16,
        "num_experts": 60,
        "num_experts_per_tok": 4,
        "norm_topk_prob": False,
        "qkv_bias": True,
        "sliding_window": 4096,
        "max_window_layers": 28,
    },
    biases={"qkv_bias": QKV},
)


def hyperparameters(keys: MetadataKeys) -> Hparams:
    return replace(read_decoder(keys), routing=Routing("softmax", keys.flag("expert_weights_norm", False)))


ARCH = Arch(
    name="qwen2moe",
    classes=(QWEN2_MOE,),
    tensors=(*OUTER, *NORMS, *ATTENTION, *FEED_FORWARD, *EXPERTS, *SHARED_EXPERT),
    hparams=hyperparameters,
    llama_cpp=PublishedArch(unscaled=drops_expert_scales("models/qwen2moe.cpp:132-142, 154-157")),
    build=Decoder(
        attention=Attention(pairs="halves"),
        feed_forward=routed_if_there(dense=Gated(swiglu), experts=Routed(normalize=False)),
    ),
)
