"""Gemma 4, its text model: heads of two sizes, values that may be the keys, layers that take up the keys and values of
an earlier one, experts beside the feed-forward network, and an embedding of every token for each layer (Gemma Team
2026). Its config.json: `gemma4_config`."""

from __future__ import annotations

from dataclasses import replace

from loragraft.archs.arch import Arch
from loragraft.archs.blocks import Attention, Decoder, Gated, Routed, geglu, rms_norm
from loragraft.archs.blocks.per_layer import add_per_layer, embed_per_layer
from loragraft.archs.gemma4_config import TEXT, rope_factors
from loragraft.archs.hparams import Hparams, Layer, read_decoder, read_windows, shared_sources
from loragraft.archs.metadata import MetadataKeys
from loragraft.archs.rope import read_rope
from loragraft.archs.tensors import ATTENTION as ATTENTION_TENSORS
from loragraft.archs.tensors import FEED_FORWARD, HEAD_NORMS, OUTER, Tensor, in_layer
from loragraft.graph.build import GraphBuilder, Ref
from loragraft.graph.ops import Op


def hyperparameters(keys: MetadataKeys) -> Hparams:
    h = read_decoder(keys)
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


def _router(g: GraphBuilder, h: Hparams, x: Ref, layer: int) -> Ref:
    """Of x / rms(x), each of its channels times a number of its own."""
    blk = f"blk.{layer}"
    scale = f"{blk}.ffn_gate_inp.scale"
    g.fact(scale)
    normed = g.plain_rms_norm(x, h.width, h.norm_eps, f"{blk}.ffn_gate_inp_norm")
    scaled = g.add(Op.CHANNEL_SCALE, (normed,), (scale,), f"{blk}.ffn_gate_inp_scaled")
    return g.linear(scaled, f"{blk}.ffn_gate_inp", arch_scale=h.width**-0.5)


_DENSE = Gated(geglu)
_ROUTED = Routed(normalize=True, gate=geglu, router=_router, norm="pre_ffw_norm_2")


def feed_forward(g: GraphBuilder, h: Hparams, x: Ref, layer: int) -> Ref:
    """A gated network of the normed value, and beside it, in models that have them, experts of the value behind a norm
    of their own; both have a norm behind them then."""
    blk = f"blk.{layer}"
    dense = _DENSE(g, h, g.rms_norm(x, f"{blk}.ffn_norm", h.norm_eps), layer)
    if not g.has(f"{blk}.ffn_gate_inp.weight"):
        return dense
    dense = g.rms_norm(dense, f"{blk}.post_ffw_norm_1", h.norm_eps)
    routed = _ROUTED(g, h, x, layer)
    routed = g.rms_norm(routed, f"{blk}.post_ffw_norm_2", h.norm_eps)
    return g.add(Op.ADD, (dense, routed), label=f"{blk}.ffn_sum")


def _in_layer(hf: str, gguf: str) -> Tensor:
    """A parameter without a module of its own."""
    return Tensor(f"model.layers.{{i}}.{hf}", f"blk.{{i}}.{gguf}", exact=True)


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
        in_layer("router.proj", "ffn_gate_inp"),
        _in_layer("router.scale", "ffn_gate_inp.scale"),
        _in_layer("router.per_expert_scale", "ffn_down_exps.scale"),
        _in_layer("experts.gate_up_proj", "ffn_gate_up_exps.weight"),
        _in_layer("experts.down_proj", "ffn_down_exps.weight"),
        in_layer("pre_feedforward_layernorm_2", "pre_ffw_norm_2"),
        in_layer("post_feedforward_layernorm_1", "post_ffw_norm_1"),
        in_layer("post_feedforward_layernorm_2", "post_ffw_norm_2"),
        in_layer("per_layer_input_gate", "inp_gate"),
        in_layer("per_layer_projection", "proj"),
        in_layer("post_per_layer_input_norm", "post_norm"),
        _in_layer("layer_scalar", "layer_output_scale.weight"),
    )


ARCH = Arch(
    name="gemma4",
    classes=(TEXT,),
    tensors=_tensors(),
    hparams=hyperparameters,
    extra_tensors=rope_factors,
    vocabulary="gemma4",
    outer_scales=frozenset(["ffn_down_exps"]),
    build=Decoder(
        attention=Attention(
            pairs="halves",
            head_norm=rms_norm,
            value_norm=True,
            source=lambda h, layer: h.extra["sources"][layer],
        ),
        feed_forward=feed_forward,
        pre_norms=("attn_norm", None),
        post_norms=("post_attention_norm", "post_ffw_norm"),
        begin=embed_per_layer,
        behind=add_per_layer,
    ),
)
