"""ERNIE 4.5 with experts (Baidu): routed by a softmax with a bias of the choice, beside shared ones, in layers above
the first."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from loragraft.archs.arch import ATTENTION, FEED_FORWARD, Arch, ConfigClass
from loragraft.archs.blocks import Attention, Decoder, Gated, Routed, by_feed_forward, swiglu
from loragraft.archs.config import Config
from loragraft.archs.hparams import Hparams, dense_below, read_decoder, read_routing
from loragraft.archs.keys import Computed, Count, GgufModel, usual
from loragraft.archs.metadata import MAX_LAYERS, MetadataKeys
from loragraft.archs.tensors import ATTENTION as ATTENTION_TENSORS
from loragraft.archs.tensors import FEED_FORWARD as FEED_FORWARD_TENSORS
from loragraft.archs.tensors import (
    NORMS,
    OUTER,
    SHARED_EXPERTS,
    UNDER_ONE,
    experts,
    fused_experts,
    in_layer,
    router_bias,
)
from loragraft.errors import UnsupportedError
from loragraft.formats.gguf.values import Metadata, Value


def _shared_width(config: Config) -> Metadata:
    """As llama.cpp's converter has it; nothing reads it."""
    shared = config.optional_integer("moe_num_shared_experts")
    if not shared:
        return {}
    return {
        "expert_shared_feed_forward_length": Value.u32(
            config.integer("intermediate_size") // config.n_kv_heads
        )
    }


def _last(config: Config) -> Metadata:
    """GGUF has no key for it: layers with experts go up to the last."""
    last = config.optional_integer("moe_layer_end_index")
    if last is not None and last < config.n_layers - 1:
        raise UnsupportedError(config.path, "dense layers above those with experts", found=last)
    return {}


def _last_back(model: GgufModel) -> dict[str, Any]:
    return {"moe_layer_end_index": len(model.h.layers) - 1}


ERNIE4_5_MOE = ConfigClass(
    "ernie4_5_moe",
    "Ernie4_5_MoeForCausalLM",
    keys=usual.usual_keys(
        norm=usual.rms_norm(),
        more=(
            Count("expert_count", ("moe_num_experts",)),
            Count("expert_used_count", ("moe_k",)),
            Count("interleave_moe_layer_step", ("moe_layer_interval",)),
            Count("leading_dense_block_count", ("moe_layer_start_index",), optional=True),
            Count("expert_feed_forward_length", ("moe_intermediate_size",)),
            Count("expert_shared_count", ("moe_num_shared_experts",), optional=True),
            Computed(frozenset(), _shared_width),
            Computed(frozenset(["moe_layer_end_index"]), _last, _last_back),
        ),
    ),
    defaults={
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 4,
        "moe_num_experts": 64,
        "moe_k": 6,
        "moe_layer_interval": 1,
        "moe_layer_start_index": 1,
        "moe_intermediate_size": 1536,
        "moe_num_shared_experts": 2,
        "tie_word_embeddings": True,
    },
    ignores=frozenset(["moe_norm_min", "moe_use_aux_free", "moe_capacity", "moe_gate", "moe_layer_type"]),
    biases={
        "use_bias": ATTENTION | FEED_FORWARD | {"ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp", "output"}
    },
)


def hyperparameters(keys: MetadataKeys) -> Hparams:
    keys.cover("expert_shared_count", "expert_shared_feed_forward_length")
    step = keys.count("interleave_moe_layer_step", 1, most=MAX_LAYERS)
    routing = read_routing(keys, "softmax", normalize=True)
    return replace(dense_below(keys, read_decoder(keys), step), routing=routing)


def _experts() -> Any:
    down, *others = sorted(experts("mlp"), key=lambda tensor: "down" not in tensor.gguf)
    return (*others, replace(down, after="blk.{i}.ffn_up_exps.weight"))


ARCH = Arch(
    name="ernie4_5-moe",
    classes=(ERNIE4_5_MOE,),
    tensors=(
        *OUTER,
        *NORMS,
        *ATTENTION_TENSORS,
        *FEED_FORWARD_TENSORS,
        in_layer("mlp.gate", "ffn_gate_inp"),
        *_experts(),
        *fused_experts("mlp"),
        router_bias("mlp.moe_statics.e_score_correction_bias", UNDER_ONE),
        *SHARED_EXPERTS,
    ),
    hparams=hyperparameters,
    build=Decoder(
        attention=Attention(pairs="adjacent"),
        feed_forward=by_feed_forward(dense=Gated(swiglu), experts=Routed(normalize=True)),
    ),
)
