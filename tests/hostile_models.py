"""Whole models, small enough to run by the hundred, whose every field may be made to lie."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from gguf_files import write_gguf
from loragraft.formats.gguf.values import Value, ValueType
from loragraft.formats.safetensors import SafetensorsSpec, SafetensorsWriter
from loragraft.inference.bpe import BYTE_OF
from small_models import SmallModel, random_adapter, small_model

#: The vocabulary: control tokens, one token for each byte, two merges.
TOKENS = ["<|begin|>", "<|end|>", *BYTE_OF, "th", "in"]
MERGES = ["t h", "i n"]
TEXT = "the thing in the other " * 8


def model(name: str = "llama", seed: int = 0) -> SmallModel:
    """A random model called `name` in `small_models.LAYERS`, of two layers, with a tokenizer."""
    rng = np.random.default_rng(seed)
    small = small_model(name, rng, layers=2)
    width = small.arrays["token_embd.weight"].shape[1]
    for base in ("token_embd", "output"):
        small.arrays[f"{base}.weight"] = rng.standard_normal((len(TOKENS), width), dtype=np.float32)
    small.metadata |= {
        "general.type": Value.string("model"),
        "tokenizer.ggml.model": Value.string("gpt2"),
        "tokenizer.ggml.pre": Value.string("llama-bpe"),
        "tokenizer.ggml.tokens": Value.strings(TOKENS),
        "tokenizer.ggml.token_type": Value.numbers(ValueType.INT32, [3, 3] + [1] * (len(TOKENS) - 2)),
        "tokenizer.ggml.merges": Value.strings(MERGES),
        "tokenizer.ggml.bos_token_id": Value.u32(0),
        "tokenizer.ggml.eos_token_id": Value.u32(1),
        "tokenizer.ggml.add_bos_token": Value.boolean(True),
        "tokenizer.chat_template": Value.string("{{ messages }}"),
    }
    return small


def gguf(path: Path, small: SmallModel) -> Path:
    return write_gguf(path, small.metadata, small.arrays)


#: The files of a Hugging Face folder with a PEFT adapter, as JSON values.
Jsons = dict[str, dict[str, Any]]


def checkpoint_jsons() -> Jsons:
    """config.json, tokenizer.json and tokenizer_config.json of a Llama, and adapter_config.json."""
    added = [{"id": i, "content": TOKENS[i], "special": True} for i in (0, 1)]
    template = [{"SpecialToken": {"id": TOKENS[0], "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    return {
        "config.json": {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "num_hidden_layers": 2,
            "max_position_embeddings": 64,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "vocab_size": len(TOKENS),
            "head_dim": 8,
            "rope_scaling": None,
        },
        "tokenizer.json": {
            "added_tokens": added,
            "normalizer": None,
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
            "post_processor": {"type": "TemplateProcessing", "single": template},
            "model": {
                "type": "BPE",
                "vocab": {text: id_ for id_, text in enumerate(TOKENS)},
                "merges": [merge.split(" ") for merge in MERGES],
            },
        },
        "tokenizer_config.json": {"bos_token": TOKENS[0], "eos_token": {"content": TOKENS[1]}},
        "adapter_config.json": {
            "peft_type": "LORA",
            "r": 3,
            "lora_alpha": 6,
            "target_modules": ["q_proj"],
            "rank_pattern": {},
            "alpha_pattern": {},
            "peft_version": "0.19.0",
        },
    }


_MODULES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OUTSIDE = {"token_embd": "model.embed_tokens", "output": "lm_head", "output_norm": "model.norm"}


def checkpoint(folder: Path, jsons: Jsons) -> tuple[Path, Path]:
    """Folders with the model and with the adapter, of `jsons` and random weights."""
    base, adapter = folder / "base", folder / "adapter"
    for path in (base, adapter):
        path.mkdir(parents=True)
    for name, value in jsons.items():
        (adapter if name == "adapter_config.json" else base).joinpath(name).write_text(json.dumps(value))
    small = model()
    weights = {}
    for name, array in small.arrays.items():
        stem = name.removesuffix(".weight")
        if stem not in _OUTSIDE:
            _, layer, part = stem.split(".")
        module = _OUTSIDE.get(stem) or f"model.layers.{layer}.{_MODULES[part]}"
        weights[f"{module}.weight"] = array
    _write(base / "model.safetensors", weights)
    pairs = random_adapter(np.random.default_rng(1), {"blk.1.attn_q": (32, 32)}).pairs
    name = "base_model.model.model.layers.1.self_attn.q_proj"
    (pair,) = pairs.values()
    _write(
        adapter / "adapter_model.safetensors",
        {f"{name}.lora_A.weight": pair.a, f"{name}.lora_B.weight": pair.b},
    )
    return base, adapter


def _write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    specs = [SafetensorsSpec(name, "F32", array.shape) for name, array in arrays.items()]
    with SafetensorsWriter(path, specs) as writer:
        for name, array in arrays.items():
            writer.write(name, 0, np.ascontiguousarray(array, "<f4"))
