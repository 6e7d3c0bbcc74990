"""Qwen2 and Qwen2.5: Llama with a bias on q, k and v, and RoPE on halves."""

from __future__ import annotations

from loragraft.archs.arch import QKV, Arch, ConfigClass
from loragraft.archs.blocks import Attention, Decoder, Gated, swiglu
from loragraft.archs.keys.usual import rms_norm, usual_keys
from loragraft.archs.keys.windows import UPPER_LAYERS
from loragraft.archs.tensors import ATTENTION, FEED_FORWARD, NORMS, OUTER
from loragraft.graph.llama_cpp import PublishedArch, drops_ffn_scales

QWEN2 = ConfigClass(
    "qwen2",
    "Qwen2ForCausalLM",
    keys=usual_keys(norm=rms_norm(), windows=UPPER_LAYERS),
    defaults={
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "max_position_embeddings": 32768,
        "num_key_value_heads": 32,
        "sliding_window": 4096,
        "max_window_layers": 28,
    },
    biases={"": QKV},
)
ARCH = Arch(
    name="qwen2",
    classes=(QWEN2,),
    tensors=(*OUTER, *NORMS, *ATTENTION, *FEED_FORWARD),
    llama_cpp=PublishedArch(frozenset(["output"]), drops_ffn_scales("models/qwen2.cpp:119-122")),
    build=Decoder(attention=Attention(pairs="halves"), feed_forward=Gated(swiglu)),
)
