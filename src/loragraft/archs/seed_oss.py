"""Seed-OSS (ByteDance): Llama's layers with biases by flag, heads of a size of their own, RoPE in halves."""

from __future__ import annotations

from loragraft.archs.arch import FEED_FORWARD, QKV, Arch, ConfigClass
from loragraft.archs.blocks import Attention, Decoder, Gated, swiglu
from loragraft.archs.keys import usual
from loragraft.archs.tensors import ATTENTION as ATTENTION_TENSORS
from loragraft.archs.tensors import FEED_FORWARD as FEED_FORWARD_TENSORS
from loragraft.archs.tensors import OUTER, in_layer

SEED_OSS = ConfigClass(
    "seed_oss",
    "SeedOssForCausalLM",
    keys=usual.usual_keys(norm=usual.rms_norm()),
    defaults={
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "max_position_embeddings": 524288,
        "head_dim": 128,
        "num_key_value_heads": 8,
        "attention_bias": True,
    },
    biases={
        "attention_bias": QKV,
        "attention_out_bias": frozenset(["attn_output"]),
        "mlp_bias": FEED_FORWARD,
    },
)
ARCH = Arch(
    name="seed_oss",
    classes=(SEED_OSS,),
    tensors=(
        *OUTER,
        in_layer("input_layernorm", "attn_norm"),
        *ATTENTION_TENSORS,
        in_layer("post_attention_layernorm", "post_attention_norm"),
        *FEED_FORWARD_TENSORS,
    ),
    build=Decoder(
        attention=Attention(pairs="halves"),
        feed_forward=Gated(swiglu),
        pre_norms=("attn_norm", "post_attention_norm"),
    ),
)
