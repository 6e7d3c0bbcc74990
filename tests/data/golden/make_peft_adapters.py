"""Records peft-adapters.npz: adapters of every kind that PEFT saves, on two tiny random models, and their logits.

    python make_peft_adapters.py        (torch 2, transformers 5.17, peft 0.21.2; on the CPU, float32)

Keys: `ids`; `<base>/config`, `<base>/<tensor>` of the bases `llama` (untied) and `qwen2` (tied, biases);
`<case>/config`, `<case>/<tensor>`, `<case>/logits` of the adapters, `<case>` being `<base>+<what it holds>`; `<case>
then <case>/logits` of two at once. Configs are JSON in bytes. Every trainable number of an adapter is random; it is
saved, loaded on a fresh base, and then run.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.numpy import save_file
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

VOCAB, WIDTH = 40, 32
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
BASES = {
    "llama": LlamaConfig(**SIZES, tie_word_embeddings=False),
    "qwen2": Qwen2Config(**SIZES, tie_word_embeddings=True),
}
QV = ["q_proj", "v_proj"]
ALL = [*QV, "k_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

#: For every case: the adapter's settings, and the size to which the vocabulary is changed first.
CASES: dict[str, tuple[dict[str, Any], int | None]] = {
    "llama+saved": ({"target_modules": QV, "modules_to_save": ["embed_tokens", "lm_head", "norm"]}, None),
    "llama+saved-layer": ({"target_modules": ["q_proj"], "modules_to_save": ["down_proj", "k_proj"]}, None),
    "llama+resized": ({"target_modules": QV, "modules_to_save": ["embed_tokens", "lm_head"]}, VOCAB + 3),
    "llama+resized-alone": ({"target_modules": QV}, VOCAB + 3),
    "llama+embedding": ({"target_modules": [*QV, "embed_tokens", "lm_head"]}, None),
    "llama+resized-embedding": ({"target_modules": [*QV, "embed_tokens"]}, VOCAB + 3),
    "llama+dora": ({"target_modules": [*ALL, "lm_head"], "use_dora": True}, None),
    "llama+dora-rslora": (
        {"target_modules": ALL, "use_dora": True, "use_rslora": True, "rank_pattern": {"up_proj": 2}},
        None,
    ),
    "llama+tokens": ({"target_modules": QV, "trainable_token_indices": [3, 38, 7]}, None),
    "llama+tokens-both": (
        {"target_modules": QV, "trainable_token_indices": {"embed_tokens": [3, 38], "lm_head": [4, 7]}},
        None,
    ),
    "llama+resized-tokens": ({"target_modules": QV, "trainable_token_indices": [40, 41, 42]}, VOCAB + 3),
    "llama+pissa": ({"target_modules": ALL, "init_lora_weights": "pissa"}, None),
    "llama+olora": ({"target_modules": ALL, "init_lora_weights": "olora"}, None),
    "llama+mica": ({"target_modules": ALL, "init_lora_weights": "mica"}, None),
    "qwen2+saved-embedding": ({"target_modules": QV, "modules_to_save": ["embed_tokens"]}, None),
    "qwen2+saved-head": ({"target_modules": QV, "modules_to_save": ["lm_head"]}, None),
    "qwen2+saved-tied": (
        {"target_modules": QV, "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
        None,
    ),
    "qwen2+embedding": ({"target_modules": [*QV, "embed_tokens"]}, None),
    "qwen2+embedding-tied": (
        {"target_modules": [*QV, "embed_tokens"], "ensure_weight_tying": True},
        None,
    ),
    "qwen2+head": ({"target_modules": [*QV, "lm_head"]}, None),
    "qwen2+resized": ({"target_modules": QV, "modules_to_save": ["embed_tokens", "lm_head"]}, VOCAB - 4),
    "qwen2+resized-alone": ({"target_modules": QV}, VOCAB + 3),
    "qwen2+tokens": ({"target_modules": QV, "trainable_token_indices": [3, 38, 7]}, None),
    "qwen2+tokens-head": ({"target_modules": QV, "trainable_token_indices": {"lm_head": [3, 38]}}, None),
    "qwen2+tokens-both": (
        {"target_modules": QV, "trainable_token_indices": {"embed_tokens": [3, 38], "lm_head": [3, 38]}},
        None,
    ),
    "qwen2+tokens-differ": (
        {"target_modules": QV, "trainable_token_indices": {"embed_tokens": [3, 38], "lm_head": [4, 7]}},
        None,
    ),
    "qwen2+resized-tokens": ({"target_modules": QV, "trainable_token_indices": [40, 41, 42]}, VOCAB + 3),
    "qwen2+lora-bias": ({"target_modules": QV, "lora_bias": True}, None),
    "qwen2+biases": ({"target_modules": ["q_proj", "o_proj"], "bias": "all"}, None),
    "qwen2+biases-lora-only": ({"target_modules": ["q_proj", "o_proj"], "bias": "lora_only"}, None),
    "qwen2+dora": ({"target_modules": ALL, "use_dora": True}, None),
}


#: Adapters that act one after the other.
TURNS = [("llama+dora-rslora", "llama+mica"), ("llama+mica", "llama+dora-rslora")]


def model(folder: Path, size: int | None) -> Any:
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if size is not None:
        torch.manual_seed(2)
        base.resize_token_embeddings(size)
    return base


def disturb(adapted: Any) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter += 0.1 * noise * (1 + parameter.abs())


def record(folder: Path, settings: dict[str, Any], size: int | None, ids: torch.Tensor) -> dict[str, Any]:
    options = {"r": 4, "lora_alpha": 6, "task_type": "CAUSAL_LM", **settings}
    torch.manual_seed(1)
    adapted = get_peft_model(model(folder, size), LoraConfig(**options))
    disturb(adapted)
    with tempfile.TemporaryDirectory() as out:
        adapted.save_pretrained(out)
        config = json.loads((Path(out) / "adapter_config.json").read_text())
        config |= {"base_model_name_or_path": folder.name, "target_modules": sorted(config["target_modules"])}
        found: dict[str, Any] = {"config": json.dumps(config).encode()}
        found |= load_file(Path(out) / "adapter_model.safetensors")
        fresh = PeftModel.from_pretrained(model(folder, size), out).eval()
        with torch.no_grad():
            found["logits"] = fresh(ids).logits[0]
    return found


def in_turn(folder: Path, arrays: dict[str, Any], turns: tuple[str, ...], ids: torch.Tensor) -> torch.Tensor:
    adapted = None
    with tempfile.TemporaryDirectory() as out:
        for case in turns:
            saved = Path(out) / case
            saved.mkdir()
            tensors = {
                key.partition("/")[2]: value for key, value in arrays.items() if key.startswith(f"{case}/")
            }
            del tensors["logits"]
            (saved / "adapter_config.json").write_bytes(tensors.pop("config").tobytes())
            save_file(tensors, saved / "adapter_model.safetensors")
            name = case.replace("+", "_").replace("-", "_")
            if adapted is None:
                adapted = PeftModel.from_pretrained(model(folder, None), saved, adapter_name=name)
            else:
                adapted.load_adapter(saved, adapter_name=name)
        adapted.base_model.set_adapter([case.replace("+", "_").replace("-", "_") for case in turns])
        with torch.no_grad():
            return adapted.eval()(ids).logits[0]


def main() -> None:
    warnings.simplefilter("ignore")
    here = Path(__file__).parent
    generator = torch.Generator().manual_seed(7)
    ids = torch.randint(VOCAB - 4, (1, 24), generator=generator)
    ids[0, :4] = torch.tensor([3, 35, 7, 4])
    arrays: dict[str, Any] = {"ids": ids[0].numpy().astype(np.int32)}

    def add(name: str, found: dict[str, Any]) -> None:
        for key, value in found.items():
            if isinstance(value, bytes):
                arrays[f"{name}/{key}"] = np.frombuffer(value, np.uint8)
            else:
                arrays[f"{name}/{key}"] = value.numpy() if isinstance(value, torch.Tensor) else value

    with tempfile.TemporaryDirectory() as work:
        for name, config in BASES.items():
            torch.manual_seed(0)
            base = AutoModelForCausalLM.from_config(config)
            with torch.no_grad():
                for key, parameter in base.named_parameters():
                    if key.endswith("bias"):
                        parameter += 0.2 * torch.randn(parameter.shape)
                    elif parameter.dim() > 1:
                        parameter *= 8  # far from linear: a misplaced step must show
            folder = Path(work) / name
            base.half().save_pretrained(folder)
            add(
                name,
                {"config": (folder / "config.json").read_bytes(), **load_file(folder / "model.safetensors")},
            )
        for case, (settings, size) in CASES.items():
            add(case, record(Path(work) / case.split("+")[0], settings, size, ids))
        for turns in TURNS:
            arrays[f"{' then '.join(turns)}/logits"] = in_turn(
                Path(work) / "llama", arrays, turns, ids
            ).numpy()
    np.savez_compressed(here / "peft-adapters.npz", **arrays)


if __name__ == "__main__":
    main()
