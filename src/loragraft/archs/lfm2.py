"""LFM2 (Liquid AI, arXiv 2511.23404): gated short convolutions, and attention with QK norm in some layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from loragraft.archs.arch import Arch, ConfigClass
from loragraft.archs.blocks import Attention, Decoder, Gated, by_mixer, gated_short_conv, rms_norm, swiglu
from loragraft.archs.config import Config
from loragraft.archs.hparams import Hparams, Layer, read_decoder
from loragraft.archs.keys import Computed, Count, GgufModel, KvHeads, usual
from loragraft.archs.metadata import MetadataKeys
from loragraft.archs.recurrence import KvHeadsByKind
from loragraft.archs.tensors import SQUEEZED, Tensor, in_layer
from loragraft.formats.gguf.values import Metadata, Value

CONV, ATTENTION = "conv", "full_attention"
#: Of both classes, with experts and without.
DEFAULTS = {
    "norm_eps": 1e-5,
    "rope_theta": 1000000.0,
    "max_position_embeddings": 128000,
    "num_key_value_heads": 8,
    "conv_L_cache": 3,
    "tie_word_embeddings": True,
}
BIASES = {"conv_bias": frozenset(["in_proj", "out_proj", "conv"])}
_FEED_FORWARD = (
    "intermediate_size",
    "block_ff_dim",
    "block_auto_adjust_ff_dim",
    "block_ffn_dim_multiplier",
    "block_multiple_of",
)


def _by_index(config: Config, layer: int) -> str:
    attending = config.get("full_attn_idxs")
    return ATTENTION if attending is None or layer in attending else CONV


def _feed_forward(config: Config) -> Metadata:
    """The width of the feed-forward network: two thirds of what is said, up to a multiple, unless it says otherwise."""
    width = config.integer("block_ff_dim", "intermediate_size")
    if config.get("block_auto_adjust_ff_dim"):
        multiple = config.integer("block_multiple_of")
        width = int(config.number("block_ffn_dim_multiplier") * int(2 * width / 3))
        width = -(-width // multiple) * multiple
    return {"feed_forward_length": Value.u32(width)}


def _feed_forward_back(model: GgufModel) -> dict[str, Any]:
    return {"intermediate_size": model.h.layers[0].ff, "block_auto_adjust_ff_dim": False}


def hyperparameters(keys: MetadataKeys) -> Hparams:
    keys.count("shortconv.l_cache")

    def layer(_: int, own: Layer) -> Layer:
        return own if own.kv_heads else replace(own, mixer="conv")

    return read_decoder(keys).with_layers(layer)


_KEYS = tuple(
    KvHeadsByKind(CONV, ATTENTION, _by_index, ("full_attn_idxs",)) if isinstance(rule, KvHeads) else rule
    for rule in usual.usual_keys(
        norm=usual.rms_norm("norm_eps"),
        more=(Count("vocab_size", ("vocab_size",)), Count("shortconv.l_cache", ("conv_L_cache",))),
    )
)
_WIDTH = Computed(frozenset(_FEED_FORWARD), _feed_forward, _feed_forward_back)
LFM2 = ConfigClass(
    "lfm2",
    "Lfm2ForCausalLM",
    keys=tuple(_WIDTH if "intermediate_size" in rule.config_keys else rule for rule in _KEYS),
    defaults={
        **DEFAULTS,
        "intermediate_size": 12288,
        "block_multiple_of": 256,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": True,
    },
    biases=BIASES,
    ignores=frozenset(["tie_embedding"]),
    experts=False,
)
DECODER = Decoder(
    attention=by_mixer(
        attention=Attention(pairs="halves", head_norm=rms_norm),
        conv=gated_short_conv,
    ),
    feed_forward=Gated(swiglu),
    output_norm="token_embd_norm",
)
ARCH = Arch(
    name="lfm2",
    classes=(LFM2,),
    tensors=(
        Tensor("model.embed_tokens", "token_embd"),
        Tensor("model.embedding_norm", "token_embd_norm"),
        Tensor("lm_head", "output"),
        in_layer("operator_norm", "attn_norm"),
        in_layer("ffn_norm", "ffn_norm"),
        in_layer("self_attn.q_proj", "attn_q"),
        in_layer("self_attn.k_proj", "attn_k"),
        in_layer("self_attn.v_proj", "attn_v"),
        in_layer("self_attn.out_proj", "attn_output"),
        in_layer("self_attn.q_layernorm", "attn_q_norm"),
        in_layer("self_attn.k_layernorm", "attn_k_norm"),
        replace(in_layer("conv.conv", "shortconv.conv"), shape=SQUEEZED),
        in_layer("conv.in_proj", "shortconv.in_proj"),
        in_layer("conv.out_proj", "shortconv.out_proj"),
        in_layer("feed_forward.w1", "ffn_gate"),
        in_layer("feed_forward.w3", "ffn_up"),
        in_layer("feed_forward.w2", "ffn_down"),
    ),
    hparams=hyperparameters,
    build=DECODER,
)
