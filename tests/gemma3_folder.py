"""A small Gemma 3 as Hugging Face has them: a real SentencePiece tokenizer, weights that are drawn here in BF16."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from hf_configs import weights

TOKENIZER = Path(__file__).parent / "data" / "models" / "gemma3-tokenizer"
#: What llama.cpp's converter was asked for.
CASES = {"plain": "bf16", "scaled": "f16"}
VOCABULARY = 672
"""More than the tokenizer has: the rest is padded."""
CONFIG: dict[str, Any] = {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "query_pre_attn_scalar": 32,
    "max_position_embeddings": 256,
    "sliding_window": 16,
    "rms_norm_eps": 1e-6,
    "bos_token_id": 2,
    "eos_token_id": [1, 106],
    "pad_token_id": 0,
    "hidden_activation": "gelu_pytorch_tanh",
    "dtype": "bfloat16",
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
}
#: Config keys by case: one as 270M and 1B say it, one as 4B and more.
CHANGES: dict[str, dict[str, Any]] = {
    "plain": {"_sliding_window_pattern": 6, "final_logit_softcapping": None},
    "scaled": {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "final_logit_softcapping": 30.0},
}


def shapes(config: dict[str, Any]) -> dict[str, list[int]]:
    """Of a checkpoint's tensors, by name."""
    width, ff = config["hidden_size"], config["intermediate_size"]
    q, kv = (config[key] * config["head_dim"] for key in ("num_attention_heads", "num_key_value_heads"))
    norms = ("input", "post_attention", "pre_feedforward", "post_feedforward")
    found = {"model.embed_tokens.weight": [config["vocab_size"], width], "model.norm.weight": [width]}
    for layer in range(config["num_hidden_layers"]):
        own = {
            "self_attn.q_proj": [q, width],
            "self_attn.k_proj": [kv, width],
            "self_attn.v_proj": [kv, width],
            "self_attn.o_proj": [width, q],
            "self_attn.q_norm": [config["head_dim"]],
            "self_attn.k_norm": [config["head_dim"]],
            "mlp.gate_proj": [ff, width],
            "mlp.up_proj": [ff, width],
            "mlp.down_proj": [width, ff],
            **{f"{norm}_layernorm": [width] for norm in norms},
        }
        found |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in own.items()}
    return found


def write_folder(folder: Path, case: str) -> Path:
    """The checkpoint `case` in the new `folder`."""
    config = {**CONFIG, **CHANGES[case]}
    folder.mkdir()
    drawn = weights(shapes(config), "gemma3_text")
    header, blobs, at = {}, [], 0
    for name, array in drawn.items():
        blob = (array.view("<u4") >> 16).astype("<u2").tobytes()  # the upper half of a float32 is a BF16
        header[name] = {"dtype": "BF16", "shape": list(array.shape), "data_offsets": [at, at + len(blob)]}
        blobs.append(blob)
        at += len(blob)
    head = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    head += b" " * (-len(head) % 8)
    (folder / "model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + b"".join(blobs))
    (folder / "config.json").write_text(json.dumps(config))
    for path in TOKENIZER.iterdir():
        shutil.copy(path, folder / path.name)
    return folder


def bf16(array: np.ndarray) -> np.ndarray:
    """float32 values as `write_folder` stores them."""
    return (array.view("<u4") & np.uint32(0xFFFF0000)).view("<f4")
