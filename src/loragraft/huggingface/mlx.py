"""mlx-lm's adapters (`mlx_lm.lora`): adapters.safetensors, and adapter_config.json with the scale.

A linear's pair is `lora_a` [in, r] and `lora_b` [r, out], y = W x + scale (x lora_a) lora_b: PEFT's, transposed, with a
scale in place of alpha / r. An embedding's is [vocabulary, r] and [r, d], that of an expert stack [E, r, in] and
[E, out, r]. DoRA adds `m`, the rows' lengths. Source: ml-explore/mlx-lm (tuner/lora.py, tuner/dora.py, tuner/utils.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from loragraft.adapters.methods.method import ModuleDelta
from loragraft.adapters.peft import PeftTensors, tensor_floats
from loragraft.adapters.peft_config import LoraSettings
from loragraft.arrays import Floats
from loragraft.errors import AdapterError, CheckpointError
from loragraft.formats.jsonfile import load_json
from loragraft.formats.peft import CONFIG
from loragraft.formats.safetensors import CheckpointTensor, SafetensorsFile
from loragraft.patterns import SuffixTable

MLX_WEIGHTS = "adapters.safetensors"
_PART = re.compile(r"(?P<module>.+)\.(?P<part>lora_a|lora_b|m)")
_EMBEDDINGS = ("embed_tokens", "wte", "tok_embeddings")
#: mlx-lm's name of a layer's stack of experts, and the hub's names of its members.
_STACK = re.compile(r"(?P<layer>.+)\.switch_mlp\.(?P<projection>gate_proj|up_proj|down_proj)")
_MIXTRAL = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}


def is_mlx_adapter(config: Mapping[str, Any]) -> bool:
    """Whether adapter_config.json is mlx-lm's."""
    return "peft_type" not in config and bool({"lora_parameters", "fine_tune_type"} & config.keys())


def mlx_part_of(name: str) -> str:
    """What the tensor called `name` is, in words (as `adapters.peft.part_of`)."""
    match = _PART.fullmatch(name)
    if match is None:
        return "whole tensors"
    return "DoRA magnitudes" if match["part"] == "m" else "halves of LoRA pairs"


def read_mlx(folder: Path) -> tuple[LoraSettings, PeftTensors, dict[str, Any]]:
    """The adapter in `folder` as PEFT's would be read, and its configuration.

    Raises CheckpointError for files that are malformed, AdapterError for a scale that is not said or a pair that is not
    whole.
    """
    path = folder / MLX_WEIGHTS
    if not (folder / CONFIG).is_file():
        raise AdapterError(
            folder,
            f"is an mlx-lm adapter without {CONFIG}, which says its scale",
            found=MLX_WEIGHTS,
            expected=f"{CONFIG} beside it",
            hint="copy it from where the adapter was trained (mlx-lm writes it to --adapter-path)",
        )
    config = load_json(folder / CONFIG, CheckpointError)
    kind = config.get("fine_tune_type", "lora")
    if kind not in ("lora", "dora", "full"):
        raise AdapterError(
            folder / CONFIG,
            "unknown fine_tune_type",
            found=repr(kind)[:80],
            expected="lora, dora or full",
        )
    parts, trained = _parts(SafetensorsFile.open(path).tensors)
    if kind == "full" and parts:
        raise AdapterError(path, "holds pairs, though fine_tune_type is full", found=next(iter(parts)))
    scale = _scale(folder / CONFIG, config) if parts else 1.0
    deltas = [delta for module, own in parts.items() for delta in _deltas(path, module, own)]
    if not deltas and not trained:
        raise AdapterError(
            path, "holds no LoRA tensors", found="no tensor", hint="train it again: the file is empty"
        )
    rank = max((delta.a.shape[0] for delta in deltas), default=1)
    ranks = {delta.module: delta.a.shape[0] for delta in deltas if delta.a.shape[0] != rank}
    settings = LoraSettings(
        folder / CONFIG,
        rank,
        scale * rank,
        rank_pattern=SuffixTable(ranks),
        alpha_pattern=SuffixTable({module: scale * own for module, own in ranks.items()}),
        dora=kind == "dora",
    )
    return settings, PeftTensors(deltas, trained=trained), config


def _parts(
    tensors: Mapping[str, CheckpointTensor],
) -> tuple[dict[str, dict[str, CheckpointTensor]], dict[str, CheckpointTensor]]:
    """The tensors of pairs by module, and the others: whole tensors that were trained."""
    parts: dict[str, dict[str, CheckpointTensor]] = {}
    trained = {}
    for name, tensor in sorted(tensors.items()):
        if match := _PART.fullmatch(name):
            parts.setdefault(match["module"], {})[match["part"]] = tensor
        else:
            trained[name] = tensor
    return parts, trained


def _scale(path: Path, config: Mapping[str, Any]) -> float:
    parameters = config.get("lora_parameters")
    scale = parameters.get("scale") if isinstance(parameters, Mapping) else None
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < 1e9:
        raise AdapterError(
            path,
            "does not say the adapter's scale",
            found=repr(scale)[:80],
            expected="lora_parameters.scale, a number > 0",
            hint="write the scale that it was trained with there (mlx-lm's default was 20.0, or 10.0 before)",
        )
    return float(scale)


def _deltas(path: Path, module: str, parts: Mapping[str, CheckpointTensor]) -> list[ModuleDelta]:
    if not {"lora_a", "lora_b"} <= parts.keys():
        raise AdapterError(
            path, f"{module} has no complete pair", found=sorted(parts), expected="lora_a and lora_b"
        )
    a, b = (tensor_floats(path, parts[part]) for part in ("lora_a", "lora_b"))
    magnitude = tensor_floats(path, parts["m"]) if "m" in parts else None
    if a.ndim == 3 and (match := _STACK.fullmatch(module)):
        return _experts(path, module, match, a, b)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0] or 0 in a.shape + b.shape:
        raise AdapterError(
            path,
            f"the pair of {module} does not fit together",
            found=f"lora_a {a.shape}, lora_b {b.shape}",
            expected="(in, r) and (r, out)",
        )
    embedding = module.rpartition(".")[2] in _EMBEDDINGS
    return [ModuleDelta(module, _turned(a), _turned(b), embedding, magnitude=magnitude)]


def _experts(path: Path, module: str, match: re.Match[str], a: Floats, b: Floats) -> list[ModuleDelta]:
    if b.ndim != 3 or a.shape[0] != b.shape[0] or a.shape[1] != b.shape[2] or 0 in a.shape + b.shape:
        raise AdapterError(
            path,
            f"the pairs of {module} do not fit together",
            found=f"lora_a {a.shape}, lora_b {b.shape}",
            expected="(experts, r, in) and (experts, out, r)",
        )
    projection = match["projection"]
    if match["layer"].endswith("block_sparse_moe"):
        projection = _MIXTRAL[projection]
    return [
        ModuleDelta(f"{match['layer']}.experts.{expert}.{projection}", a[expert], b[expert])
        for expert in range(a.shape[0])
    ]


def _turned(matrix: Floats) -> Floats:
    return np.ascontiguousarray(matrix.T)
