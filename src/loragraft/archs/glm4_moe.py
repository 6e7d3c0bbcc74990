"""GLM-4.5 and 4.6 (Zhipu, arXiv 2508.06471): routed experts with a bias of the choice beside a shared one, RoPE on one
half of each head, and layers that predict tokens further on, which are kept and not run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from loragraft.archs.arch import QKV, Arch, ConfigClass
from loragraft.archs.blocks import (
    Attention,
    Decoder,
    Gated,
    Routed,
    by_feed_forward,
    rms_norm_if_there,
    swiglu,
)
from loragraft.archs.config import LAYERS, Config
from loragraft.archs.hparams import Hparams, dense_below, read_decoder, read_routing
from loragraft.archs.keys import Computed, Count, Flag, GgufModel, Number, RopeParameters, RotaryPart, usual
from loragraft.archs.metadata import MAX_LAYERS, MetadataKeys
from loragraft.archs.tensors import ATTENTION as ATTENTION_TENSORS
from loragraft.archs.tensors import (
    EXPERTS,
    FEED_FORWARD,
    HEAD_NORMS,
    OUTER,
    SHARED_EXPERTS,
    in_layer,
    router_bias,
)
from loragraft.formats.gguf.values import Metadata, Value

_PREDICTORS = "num_nextn_predict_layers"


def predictors(config: Config) -> int:
    return min(config.optional_integer(_PREDICTORS) or 0, MAX_LAYERS)


def _all_layers(config: Config) -> Metadata:
    return {"block_count": Value.u32(config.n_layers + predictors(config))}


def _all_layers_back(model: GgufModel) -> dict[str, Any]:
    more = model.h.predictors
    return {LAYERS[0]: len(model.h.layers) - more, _PREDICTORS: more}


#: How many layers there are, those that predict further on included.
ALL_LAYERS = Computed(frozenset([*LAYERS, _PREDICTORS]), _all_layers, _all_layers_back)


def _norms_back(model: GgufModel) -> dict[str, Any]:
    return {"use_qk_norm": "blk.0.attn_q_norm.weight" in model.shapes}


GLM4_MOE = ConfigClass(
    "glm4_moe",
    "Glm4MoeForCausalLM",
    keys=(
        ALL_LAYERS,
        *usual.usual_keys(
            norm=usual.rms_norm(),
            rope=RopeParameters(partial=True),
            experts=True,
            groups=True,
            more=(
                RotaryPart(),
                Count("expert_feed_forward_length", ("moe_intermediate_size",)),
                Count("expert_shared_count", ("n_shared_experts",), optional=True),
                Count("leading_dense_block_count", ("first_k_dense_replace",), optional=True),
                Computed(frozenset(), lambda config: {"expert_gating_func": Value.u32(2)}),
                Number("expert_weights_scale", "routed_scaling_factor"),
                Flag("expert_weights_norm", "norm_topk_prob"),
                Computed(frozenset(), lambda config: {"nextn_predict_layers": Value.u32(predictors(config))}),
                Computed(frozenset(["use_qk_norm"]), lambda config: {}, _norms_back),
            ),
        )[1:],
    ),
    defaults={
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "partial_rotary_factor": 0.5,
        "n_group": 1,
        "topk_group": 1,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.0,
    },
    biases={"attention_bias": QKV},
)


def hyperparameters(keys: MetadataKeys) -> Hparams:
    keys.cover("expert_shared_count")
    routing = read_routing(keys, "sigmoid", normalize=True, group_best=2)
    return replace(with_predictors(keys, dense_below(keys, read_decoder(keys))), routing=routing)


def with_predictors(keys: MetadataKeys, h: Hparams) -> Hparams:
    return replace(h, predictors=min(keys.count("nextn_predict_layers", 0, least=0), len(h.layers) - 1))


#: Of the layers that predict further on.
PREDICTION = (
    in_layer("eh_proj", "nextn.eh_proj"),
    in_layer("embed_tokens", "nextn.embed_tokens"),
    in_layer("enorm", "nextn.enorm"),
    in_layer("hnorm", "nextn.hnorm"),
    in_layer("shared_head.head", "nextn.shared_head_head"),
    in_layer("shared_head.norm", "nextn.shared_head_norm"),
)
ARCH = Arch(
    name="glm4moe",
    classes=(GLM4_MOE,),
    tensors=(
        *OUTER,
        in_layer("input_layernorm", "attn_norm"),
        *ATTENTION_TENSORS,
        *HEAD_NORMS,
        in_layer("post_attention_layernorm", "post_attention_norm"),
        *FEED_FORWARD,
        *EXPERTS,
        router_bias("mlp.gate.e_score_correction_bias"),
        *SHARED_EXPERTS,
        *PREDICTION,
    ),
    hparams=hyperparameters,
    build=Decoder(
        attention=Attention(pairs="halves", head_norm=rms_norm_if_there),
        feed_forward=by_feed_forward(dense=Gated(swiglu), experts=Routed(normalize=True, gating="sigmoid")),
        pre_norms=("attn_norm", "post_attention_norm"),
    ),
)
