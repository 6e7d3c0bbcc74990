"""An adapter as mlx-lm saves it (`huggingface.mlx` says what its tensors mean)."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import numpy as np

from loragraft.adapters.lora import EMBEDDING, Adapter, LoraPair
from loragraft.arrays import Floats
from loragraft.errors import AdapterError
from loragraft.formats.source import ModelSource
from loragraft.huggingface.adapter_modules import ModulePair, module_names, module_pairs, replaced_modules
from loragraft.huggingface.peft_writer import check_pairs_only
from loragraft.huggingface.tensor_names import CheckpointNames

_LAYER = re.compile(r"model\.layers\.\d+\.")
_EXPERT = re.compile(r"(?P<layer>.+)\.experts\.0\.(?P<projection>[^.]+)(?:\.weight)?")
_MIXTRAL = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}


def mlx_files(adapter: Adapter, base: ModelSource) -> tuple[dict[str, Any], dict[str, Floats]]:
    """The configuration, and the tensors by name. One scale is for all: where the pairs' differ, what they differ by is
    multiplied into B.

    Raises AdapterError for what mlx-lm has no form for, UnsupportedError for an architecture whose names are not known.
    """
    check_pairs_only(adapter, "an mlx-lm folder")
    stacks = _stacks(adapter, base)
    dense = {name: pair for name, pair in adapter.pairs.items() if pair.a.ndim == 2}
    plain = Adapter(adapter.path, dense, adapter.arch)
    modules = module_pairs(plain, base) + stacks
    decomposed = {module.magnitude is not None for module in modules}
    if len(decomposed) > 1 or (True in decomposed and stacks):
        raise AdapterError(
            adapter.path,
            "is DoRA in some modules only, which mlx-lm's configuration cannot say",
            expected="magnitudes for all of them, or for none",
        )
    scale = Counter(module.scale for module in modules).most_common(1)[0][0] if modules else 1.0
    tensors: dict[str, Floats] = {}
    for module in modules:
        b = module.b if module.scale == scale else module.b * np.float32(module.scale / scale)
        halves = (module.a.T, b.T) if not module.stacked else (module.a, b)
        if module.embedding:
            halves = (b, module.a)
        tensors[f"{module.name}.lora_a"], tensors[f"{module.name}.lora_b"] = halves
        if module.magnitude is not None:
            tensors[f"{module.name}.m"] = module.magnitude
    tensors |= replaced_modules(adapter, base)
    config = {
        "adapter_path": adapter.name or adapter.path.name,
        "fine_tune_type": "dora" if True in decomposed else "lora",
        "lora_parameters": {
            "rank": max((module.rank for module in modules), default=8),
            "scale": scale,
            "dropout": 0.0,
            "keys": sorted({_LAYER.sub("", module.name) for module in modules}),
        },
        "model": base.path.name,
        "num_layers": -1,
    }
    return config, tensors


def _stacks(adapter: Adapter, base: ModelSource) -> list[ModulePair]:
    """Experts as mlx-lm has them: one module `switch_mlp` for each of a layer's projections."""
    pairs = {name: pair for name, pair in adapter.pairs.items() if pair.a.ndim == 3}
    own = CheckpointNames(module_names(base))
    found = []
    for name, pair in pairs.items():
        origins = own.origins(name)
        match = _EXPERT.fullmatch(origins[0].name) if origins else None
        if match is None or pair.magnitude is not None:
            raise AdapterError(adapter.path, f"adapts {name}, which has no form in mlx-lm", found=base.arch)
        _check_order(adapter, pair, own)
        projection = _MIXTRAL.get(match["projection"], match["projection"])
        found.append(ModulePair(f"{match['layer']}.switch_mlp.{projection}", pair.a, pair.b, pair.scale))
    return found


def _check_order(adapter: Adapter, pair: LoraPair, own: CheckpointNames) -> None:
    place = own.origins(pair.target)[0].place
    if pair.target != EMBEDDING and (place.tensor.rows is not None or place.tensor.columns is not None):
        raise AdapterError(adapter.path, f"adapts {pair.target}, whose rows GGUF reorders")
