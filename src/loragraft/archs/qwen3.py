"""Qwen3, dense: Qwen2 with QK norm in place of biases."""

from __future__ import annotations

from loragraft.archs.arch import ATTENTION, Arch, ConfigClass
from loragraft.archs.blocks import Attention, Decoder, Gated, rms_norm, swiglu
from loragraft.archs.keys import usual
from loragraft.archs.keys.windows import UPPER_LAYERS
from loragraft.archs.tensors import ATTENTION as ATTENTION_TENSORS
from loragraft.archs.tensors import FEED_FORWARD, HEAD_NORMS, NORMS, OUTER

QWEN3 = ConfigClass(
    "qwen3",
    "Qwen3ForCausalLM",
    keys=usual.usual_keys(norm=usual.rms_norm(), windows=UPPER_LAYERS),
    defaults={
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "max_position_embeddings": 32768,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "sliding_window": 4096,
        "max_window_layers": 28,
    },
    biases={"attention_bias": ATTENTION},
)
ARCH = Arch(
    name="qwen3",
    classes=(QWEN3,),
    tensors=(*OUTER, *NORMS, *ATTENTION_TENSORS, *HEAD_NORMS, *FEED_FORWARD),
    build=Decoder(attention=Attention(pairs="halves", head_norm=rms_norm), feed_forward=Gated(swiglu)),
)
