"""Phi-3.5-MoE (Microsoft, arXiv 2404.14219): norms and an output with biases, and two experts for each token whose
weights are of softmaxes of their own (SparseMixer, Liu et al. 2024, arXiv 2409.12136)."""

from __future__ import annotations

from loragraft.archs.arch import ATTENTION, Arch, ConfigClass
from loragraft.archs.blocks import Attention, Decoder, Routed, layer_norm
from loragraft.archs.config import CONTEXT, Config
from loragraft.archs.hparams import Hparams, read_decoder
from loragraft.archs.keys import (
    FILE_TYPE,
    Computed,
    Count,
    HiddenAct,
    KvHeads,
    Layers,
    Number,
    RopeParameters,
    RotaryPart,
    usual,
)
from loragraft.archs.keys.usual import FEED_FORWARD, HEADS, RMS_EPSILON, WIDTH
from loragraft.archs.longrope import long_factors, original_context, with_long_factors
from loragraft.archs.metadata import MetadataKeys
from loragraft.archs.tensors import ATTENTION as ATTENTION_TENSORS
from loragraft.archs.tensors import NORMS, OUTER, experts, in_layer
from loragraft.errors import UnsupportedError
from loragraft.formats.gguf.values import Metadata, Value

_JITTER = 0.01
"""`router_jitter_noise`; an expert is near the best if its logit is within twice as much."""


def _magnitude(config: Config) -> Metadata:
    """config.json's own, the same for short and long texts. The converter writes what it computes of the contexts."""
    if not long_factors(config):
        return {}
    numbers = Config(config.path, config.rope)
    short, long = (numbers.optional_number(f"{name}_mscale") for name in ("short", "long"))
    if short is None or short != long:
        raise UnsupportedError(
            config.path,
            "short_mscale and long_mscale that differ",
            found=f"{short} and {long}",
            expected="the same number",
        )
    return {"rope.scaling.attn_factor": Value.f32(short)}


def _original(config: Config) -> Metadata:
    """The converter takes no model without it."""
    return {"rope.scaling.original_context_length": Value.u32(original_context(config))}


PHIMOE = ConfigClass(
    "phimoe",
    "PhimoeForCausalLM",
    keys=(
        Computed(frozenset(), _magnitude),
        Count("context_length", CONTEXT),
        Computed(frozenset(), _original),
        Count("embedding_length", WIDTH),
        Count("feed_forward_length", FEED_FORWARD),
        Layers(),
        Count("attention.head_count", HEADS),
        KvHeads(),
        Number(RMS_EPSILON, "rms_norm_eps"),
        RotaryPart(),
        RopeParameters(partial=True, long=True),
        FILE_TYPE,
        HiddenAct(),
        Computed(
            frozenset(["sliding_window"]),
            lambda config: {
                "attention.sliding_window": Value.u32(config.optional_integer("sliding_window") or 0)
            },
            lambda model: {"sliding_window": model.h.layers[0].window},
        ),
        *reversed(usual.EXPERTS),
    ),
    defaults={
        "vocab_size": 32064,
        "hidden_size": 4096,
        "intermediate_size": 6400,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1000000.0,
        "num_experts_per_tok": 2,
        "num_local_experts": 16,
    },
    requires={"router_jitter_noise": (_JITTER,)},
    ignores=frozenset(["input_jitter_noise", "router_aux_loss_coef", "output_router_logits"]),
    biases={"attention_bias": ATTENTION, "lm_head_bias": frozenset(["output"])},
    experts=True,
)


def hyperparameters(keys: MetadataKeys) -> Hparams:
    h = with_long_factors(keys, read_decoder(keys))
    if h.experts_used != 2:
        raise UnsupportedError(
            "phimoe.expert_used_count", "SparseMixer takes two experts", found=h.experts_used, expected=2
        )
    return h


ARCH = Arch(
    name="phimoe",
    classes=(PHIMOE,),
    tensors=(
        *OUTER,
        *NORMS,
        *ATTENTION_TENSORS,
        in_layer("block_sparse_moe.gate", "ffn_gate_inp"),
        *experts("block_sparse_moe", "w1", "w3", "w2"),
        in_layer("mlp.router", "ffn_gate_inp"),
    ),
    hparams=hyperparameters,
    build=Decoder(
        attention=Attention(pairs="halves"),
        feed_forward=Routed(normalize=False, gating="sparse_mixer", margin=2 * _JITTER),
        norm=layer_norm,
    ),
    extra_tensors=long_factors,
)
