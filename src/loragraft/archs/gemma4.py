"""Gemma 4, its text model: heads of two sizes, values that may be the keys, layers that take up the keys and values of
an earlier one, and an embedding of every token for each layer (Gemma Team 2026). Its config.json: `gemma4_config`."""

from __future__ import annotations

from dataclasses import replace

from loragraft.archs.arch import Arch
from loragraft.archs.blocks import Attention, Decoder, Gated, geglu, rms_norm
from loragraft.archs.blocks.per_layer import add_per_layer, embed_per_layer
from loragraft.archs.gemma4_config import TEXT, rope_factors
from loragraft.archs.hparams import Hparams, Layer, read_decoder, read_windows, shared_sources
from loragraft.archs.metadata import MetadataKeys
from loragraft.archs.rope import read_rope
from loragraft.archs.tensors import ATTENTION as ATTENTION_TENSORS
from loragraft.archs.tensors import FEED_FORWARD, HEAD_NORMS, OUTER, Tensor, in_layer
from loragraft.errors import UnsupportedError


def hyperparameters(keys: MetadataKeys) -> Hparams:
    h = read_decoder(keys)
    if h.experts:
        raise UnsupportedError("gemma4.expert_count", "experts, of Gemma 4", found=h.experts)
    count, first = len(h.layers), h.layers[0]
    windows = read_windows(keys, count)
    shared = keys.count("attention.shared_kv_layers", 0, least=0)
    key_dim = keys.count("attention.key_length_swa", first.key_dim)
    value_dim = keys.count("attention.value_length_swa", key_dim)
    rotary = keys.count("rope.dimension_count_swa", key_dim)
    local = replace(
        read_rope(keys, rotary, key_dim, base_key="rope.freq_base_swa", scaled=False), factors=False
    )

    def layer(index: int, own: Layer) -> Layer:
        if windows[index] is None:
            return own
        return replace(own, window=windows[index], rope=local, key_dim=key_dim, value_dim=value_dim)

    h = h.with_layers(layer)
    return replace(
        h,
        embedding_scale=h.width**0.5,
        attention_scale=1.0,
        logit_softcap=keys.optional_number("final_logit_softcapping"),
        extra={
            "shared": shared,
            "sources": shared_sources(h, shared),
            "per_layer": keys.count("embedding_length_per_layer_input", 0, least=0),
        },
    )


def _tensors() -> tuple[Tensor, ...]:
    return (
        *OUTER,
        Tensor("model.embed_tokens_per_layer", "per_layer_token_embd"),
        Tensor("model.per_layer_model_projection", "per_layer_model_proj"),
        Tensor("model.per_layer_projection_norm", "per_layer_proj_norm"),
        in_layer("input_layernorm", "attn_norm"),
        *ATTENTION_TENSORS,
        *HEAD_NORMS,
        in_layer("post_attention_layernorm", "post_attention_norm"),
        in_layer("pre_feedforward_layernorm", "ffn_norm"),
        *FEED_FORWARD,
        in_layer("post_feedforward_layernorm", "post_ffw_norm"),
        in_layer("per_layer_input_gate", "inp_gate"),
        in_layer("per_layer_projection", "proj"),
        in_layer("post_per_layer_input_norm", "post_norm"),
        Tensor("model.layers.{i}.layer_scalar", "blk.{i}.layer_output_scale.weight", exact=True),
    )


ARCH = Arch(
    name="gemma4",
    classes=(TEXT,),
    tensors=_tensors(),
    hparams=hyperparameters,
    extra_tensors=rope_factors,
    vocabulary="gemma4",
    build=Decoder(
        attention=Attention(
            pairs="halves",
            head_norm=rms_norm,
            value_norm=True,
            source=lambda h, layer: h.extra["sources"][layer],
        ),
        feed_forward=Gated(geglu),
        post_norms=("post_attention_norm", "post_ffw_norm"),
        begin=embed_per_layer,
        behind=add_per_layer,
    ),
)
