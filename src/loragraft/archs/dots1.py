"""dots.llm1 (rednote, arXiv 2506.05767): QK norm, a dense layer or more below, routed experts with a bias of the
choice, beside shared ones."""

from __future__ import annotations

from dataclasses import replace

from loragraft.archs.arch import ATTENTION, Arch, ConfigClass
from loragraft.archs.blocks import Attention, Decoder, Gated, Routed, by_feed_forward, rms_norm, swiglu
from loragraft.archs.hparams import Hparams, dense_below, read_decoder, read_routing
from loragraft.archs.keys import Computed, Count, Flag, Number, usual
from loragraft.archs.keys.windows import FROM_LAYER_ON
from loragraft.archs.metadata import MetadataKeys
from loragraft.archs.tensors import ATTENTION as ATTENTION_TENSORS
from loragraft.archs.tensors import (
    EXPERTS,
    FEED_FORWARD,
    HEAD_NORMS,
    NORMS,
    OUTER,
    SHARED_EXPERTS,
    router_bias,
)
from loragraft.formats.gguf.values import Value

DOTS1 = ConfigClass(
    "dots1",
    "Dots1ForCausalLM",
    keys=usual.usual_keys(
        norm=usual.rms_norm(),
        experts=True,
        groups=True,
        windows=FROM_LAYER_ON,
        more=(
            Count("expert_feed_forward_length", ("moe_intermediate_size",)),
            Count("leading_dense_block_count", ("first_k_dense_replace",), optional=True),
            Count("expert_shared_count", ("n_shared_experts",), optional=True),
            Number("expert_weights_scale", "routed_scaling_factor"),
            Flag("expert_weights_norm", "norm_topk_prob"),
            # llama.cpp ends with an assertion where the file says nothing
            Computed(frozenset(), lambda config: {"expert_gating_func": Value.u32(2)}),
        ),
    ),
    defaults={
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "max_position_embeddings": 2048,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 0,
        "norm_topk_prob": False,
        "routed_scaling_factor": 1.0,
        "sliding_window": 4096,
        "max_window_layers": 62,
    },
    biases={"attention_bias": ATTENTION},
)


def hyperparameters(keys: MetadataKeys) -> Hparams:
    keys.cover("expert_shared_count")
    routing = read_routing(keys, "sigmoid", normalize=False, group_best=2)
    return replace(dense_below(keys, read_decoder(keys)), routing=routing)


ARCH = Arch(
    name="dots1",
    classes=(DOTS1,),
    tensors=(
        *OUTER,
        *NORMS,
        *ATTENTION_TENSORS,
        *HEAD_NORMS,
        *FEED_FORWARD,
        *EXPERTS,
        router_bias("mlp.gate.e_score_correction_bias"),
        *SHARED_EXPERTS,
    ),
    hparams=hyperparameters,
    build=Decoder(
        attention=Attention(pairs="halves", head_norm=rms_norm),
        feed_forward=by_feed_forward(dense=Gated(swiglu), experts=Routed(normalize=False, gating="sigmoid")),
    ),
)
