"""Makes folders and files as trainers, downloads and people leave them, for `intake_members`."""

from __future__ import annotations

import json
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

import loragraft as lg
from paths import data

BASE = data("llama-kjv")
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f3\nsize 13639\n"
PAGE = b"<!DOCTYPE html>\n<html><head><title>Hugging Face</title></head></html>\n"


def plain() -> Path:
    return data("intake/02-language-model-prefix", "cases/intake/02-language-model-prefix") / "plain"


def adapter(folder: Path, **settings: Any) -> Path:
    shutil.copytree(plain(), folder, dirs_exist_ok=True)
    if settings:
        config = json.loads((folder / CONFIG).read_text())
        config = {key: value for key, value in {**config, **settings}.items() if value is not ...}
        (folder / CONFIG).write_text(json.dumps(config))
    return folder


def tensors(
    folder: Path, change: Callable[[str, np.ndarray], dict[str, np.ndarray]], **settings: Any
) -> Path:
    """The adapter with each tensor changed."""
    adapter(folder, **settings)
    found: dict[str, np.ndarray] = {}
    for name, array in load_file(folder / WEIGHTS).items():
        found |= change(name, array)
    save_file(found, folder / WEIGHTS)
    return folder


def files(folder: Path, **contents: bytes) -> Path:
    """With these files; `__` stands for a dot, `___` for a folder's end."""
    for name, content in contents.items():
        path = folder / name.replace("___", "/").replace("__", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def model(folder: Path, **settings: Any) -> Path:
    shutil.copytree(BASE, folder, dirs_exist_ok=True)
    if settings:
        config = json.loads((folder / "config.json").read_text())
        config = {key: value for key, value in {**config, **settings}.items() if value is not ...}
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def bare(folder: Path) -> Path:
    """A model's folder without weights."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(BASE / "config.json", folder)
    return folder


def cut(folder: Path, length: int) -> Path:
    adapter(folder)
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:length] if length else bytes(len(content)))
    return folder


def named(folder: Path, name: str, under: str) -> Path:
    """The adapter with its weights under another name."""
    adapter(folder)
    (folder / WEIGHTS).rename(folder / name)
    return folder / under


def prefixed(prefix: str) -> Callable[[Path], Path]:
    return lambda folder: tensors(folder, lambda name, array: {prefix + name: array})


def as_type(dtype: Any, other: Any = None) -> Callable[[Path], Path]:
    def change(name: str, array: np.ndarray) -> dict[str, np.ndarray]:
        return {name: array.astype(other if other is not None and "lora_B" in name else dtype)}

    return lambda folder: tensors(folder, change)


def archive(folder: Path, kind: str) -> Path:
    path = folder / f"lora.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as packed:
            packed.write(plain() / CONFIG, CONFIG)
    else:
        with tarfile.open(path, "w:gz") as packed_:
            packed_.add(plain() / CONFIG, CONFIG)
    return path


def cache(folder: Path, *repositories: str) -> Path:
    for name in repositories:
        adapter(folder / f"models--{name}" / "snapshots" / "0a1b")
    return folder


def half_of_a_download(folder: Path) -> Path:
    snapshot = folder / "models--acme--lora" / "snapshots" / "0a1b"
    snapshot.mkdir(parents=True)
    shutil.copy(plain() / CONFIG, snapshot)
    files(folder / "models--acme--lora", blobs___ffff__incomplete=b"123")
    (snapshot / WEIGHTS).symlink_to("../../blobs/ffff")
    return folder / "models--acme--lora"


def missing_shard(folder: Path) -> Path:
    model(folder)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def latest(folder: Path) -> Path:
    for name in ("checkpoint-10", "checkpoint-20"):
        adapter(folder / name)
    (folder / "latest").symlink_to("checkpoint-20")
    return folder


def one_with_a_link(folder: Path) -> Path:
    adapter(folder / "checkpoint-20")
    (folder / "last").symlink_to("checkpoint-20")
    return folder


def config_above(folder: Path) -> Path:
    adapter(folder / "checkpoint-5")
    (folder / "checkpoint-5" / CONFIG).rename(folder / CONFIG)
    return folder


def llama_factory(folder: Path) -> Path:
    adapter(folder / "checkpoint-50")
    files(folder / "checkpoint-50", optimizer__pt=b"PK", rng_state__pth=b"PK", trainer_state__json=b"{}")
    return files(
        adapter(folder),
        all_results__json=b"{}",
        trainer_log__jsonl=b"{}",
        training_args__bin=b"PK",
        README__md=b"---\n---\n",
    )


def torchtune(folder: Path) -> Path:
    model(folder)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    return files(adapter(folder), adapter_0__pt=b"PK")


def mlx(folder: Path, *names: str) -> Path:
    source = data("intake/03-mlx-adapter", "cases/intake/03-mlx-adapter") / "adapters"
    folder.mkdir(exist_ok=True)
    shutil.copy(source / CONFIG, folder)
    for name in names:
        shutil.copy(source / "adapters.safetensors", folder / name)
    return folder


def gguf_folder(folder: Path, *names: str, config: bool = False) -> Path:
    if config:
        bare(folder)
    lg.convert(BASE, folder / names[0])
    for name in names[1:]:
        shutil.copy(folder / names[0], folder / name)
    return folder


def gguf_adapter(folder: Path, name: str, named_file: bool = False) -> Path:
    lg.convert_adapter(plain(), BASE, folder / "lora.gguf")
    (folder / "lora.gguf").rename(folder / name)
    return folder / name if named_file else folder


def other_file(folder: Path) -> Path:
    save_file({"x": np.ones(3, "f4")}, adapter(folder) / "style.safetensors")
    return folder / "style.safetensors"


def weights_alone(folder: Path) -> Path:
    """Named as a file, beside a checkpoint that holds another adapter."""
    adapter(folder / "checkpoint-10")
    shutil.copy(plain() / WEIGHTS, folder)
    return folder / WEIGHTS


def two_in_one(name: str, array: np.ndarray) -> dict[str, np.ndarray]:
    return {name.replace(".weight", f".{each}.weight"): array for each in ("default", "other")}


def changed_json(folder: Path, change: Callable[[str], str]) -> Path:
    adapter(folder)
    (folder / CONFIG).write_text(change((folder / CONFIG).read_text()))
    return folder
