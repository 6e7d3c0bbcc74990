"""golden/peft-adapters.npz and peft-methods.npz as folders: bases (with a tokenizer of single letters) and adapters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from paths import arrays

NAME = "golden/peft-adapters.npz"
METHODS = "golden/peft-methods.npz"


def golden() -> Any:
    """The arrays, by the keys that make_peft_adapters.py describes."""
    return arrays(NAME)


def methods() -> Any:
    """The arrays of methods beside LoRA, as make_peft_methods.py describes them."""
    return arrays(METHODS)


def recorded(name: str) -> Any:
    """The arrays that have the base or adapter `name`."""
    return golden() if f"{name}/config" in golden() else methods()


def base_folder(case: str, folder: Path) -> Path:
    """The base of `case`, written to `folder`."""
    path = _written(case.partition("+")[0], folder, "config.json", "model.safetensors")
    write_tokenizer(path, 36 if case.startswith("qwen2") else 40)  # Qwen pads its vocabulary
    return path


def adapter_folder(case: str, folder: Path) -> Path:
    """The adapter `case`, written to `folder`; with a tokenizer if its vocabulary is larger than the base's."""
    path = _written(case, folder, "adapter_config.json", "adapter_model.safetensors")
    tokens = recorded(case)[f"{case}/logits"].shape[1]
    if tokens > 40:
        write_tokenizer(path, tokens)
    return path


def write_tokenizer(folder: Path, tokens: int, **changes: Any) -> None:
    """A tokenizer.json of `tokens` single letters into `folder`."""
    vocab = {chr(65 + i): i for i in range(tokens)}
    tokenizer = {
        "added_tokens": [{"id": i, "content": chr(65 + i), "special": True} for i in range(3)],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
        "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "A", "eos_token": "B", **changes}))


def tensors_of(name: str) -> dict[str, np.ndarray]:
    """The tensors of a base or an adapter, by their Hugging Face names."""
    everything = recorded(name)
    found = {key.partition("/")[2]: everything[key] for key in everything if key.startswith(f"{name}/")}
    others = ("config", "logits", "merged")
    return {key: value for key, value in found.items() if key not in others and not key.startswith("start/")}


def _written(name: str, folder: Path, config: str, weights: str) -> Path:
    folder.mkdir(parents=True)
    (folder / config).write_bytes(recorded(name)[f"{name}/config"].tobytes())
    save_file(tensors_of(name), folder / weights)
    return folder
