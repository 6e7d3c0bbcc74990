"""Qwen2 and Qwen2.5: Llama with a bias on q, k and v, and RoPE on halves."""

from __future__ import annotations

from loragraft.archs.base import QKV, Arch, ModelType
from loragraft.archs.blocks import Attention, Decoder, swiglu
from loragraft.archs.windows import UPPER_LAYERS

# ---- from Hugging Face ----

QWEN2 = ModelType(
    "qwen2",
    "Qwen2ForCausalLM",
    defaults={
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "max_position_embeddings": 32768,
        "num_key_value_heads": 32,
        "sliding_window": 4096,
        "max_window_layers": 28,
    },
    requires={"hidden_act": ("silu",)},
    biases={"": QKV},
    windows=UPPER_LAYERS,
)
ARCH = Arch(name="qwen2", model_types=(QWEN2,))

# ---- the graph: RMSNorm, RoPE on halves, SwiGLU; the biases come with the linears that have them ----

build = Decoder(attention=Attention(pairs="halves"), feed_forward=swiglu)
