"""Qwen3, dense: Qwen2 with QK norm in place of biases."""

from __future__ import annotations

from loragraft.archs.base import ATTENTION, LLAMA_MODULES, Arch, ModelType
from loragraft.archs.blocks import Attention, Decoder, swiglu
from loragraft.archs.windows import UPPER_LAYERS

# ---- from Hugging Face ----

QWEN3 = ModelType(
    "qwen3",
    "Qwen3ForCausalLM",
    defaults={
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "max_position_embeddings": 32768,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "sliding_window": 4096,
        "max_window_layers": 28,
    },
    requires={"hidden_act": ("silu",)},
    biases={"attention_bias": ATTENTION},
    windows=UPPER_LAYERS,
)
ARCH = Arch(name="qwen3", model_types=(QWEN3,), modules=LLAMA_MODULES | {"q_norm", "k_norm"})

# ---- the graph: RMSNorm, also on the heads of q and k; RoPE on halves; SwiGLU ----

build = Decoder(attention=Attention(pairs="halves", head_norm=True), feed_forward=swiglu)
