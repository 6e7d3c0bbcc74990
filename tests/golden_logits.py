"""The cases in golden/hf-logits.npz and hf-logits-modelopt-nvfp4.npz: model, adapter, and the case's name there.

Both were made by transformers and peft in float32 on the CPU; ModelOpt's checkpoints were dequantized to float32.
"""

from __future__ import annotations

FLOAT_CASES = [
    ("llama-kjv", None, "llama"),
    ("llama-kjv", "llama-kjv.shakespeare", "llama+lora"),
    ("qwen2-bias", None, "qwen2"),
    ("qwen2-bias", "qwen2-bias.rslora", "qwen2+rslora"),
    ("starcoder2-bias", None, "starcoder2"),
    ("starcoder2-bias", "starcoder2-bias.pattern", "starcoder2+pattern"),
    ("qwen3moe-8x", None, "qwen3moe"),
    ("qwen3moe-8x", "qwen3moe-8x.experts", "qwen3moe+experts"),
]
NVFP4_CASES = [
    (f"{model}-nvfp4", adapter, f"{model.split('-')[0]}-nvfp4{'+lora' if adapter else ''}")
    for model, adapter, _ in FLOAT_CASES
]
