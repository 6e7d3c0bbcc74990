"""Qwen2 and Qwen2.5: Llama with a bias on q, k and v, and RoPE on halves."""

from __future__ import annotations

from gguf import MODEL_ARCH

from loragraft.archs.base import Arch

# ---- from Hugging Face ----

ARCH = Arch(
    gguf=MODEL_ARCH.QWEN2,
    model_types=("qwen2",),
    defaults={"rms_norm_eps": 1e-6, "rope_theta": 10000.0, "max_position_embeddings": 32768},
    requires={"hidden_act": ("silu",)},
    ignores={"use_sliding_window": (False,)},
)
