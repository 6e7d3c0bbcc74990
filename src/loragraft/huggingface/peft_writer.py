"""An adapter as PEFT saves it: adapter_config.json and the tensors of adapter_model.safetensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from loragraft.adapters.lora import Adapter
from loragraft.adapters.parts import refuse_parts
from loragraft.adapters.peft_config import SCALES, LoraSettings, read_settings
from loragraft.arrays import Floats
from loragraft.errors import AdapterError
from loragraft.formats.source import ModelSource
from loragraft.huggingface.adapter_modules import ModulePair, module_names, module_pairs, replaced_modules

WEIGHTS = "adapter_model.safetensors"
#: The version whose reading of these files was tested.
PEFT_VERSION = "0.21.2"
_PREFIX = "base_model.model."


def peft_files(adapter: Adapter, base: ModelSource) -> tuple[dict[str, Any], dict[str, Floats]]:
    """The configuration, and the tensors by name.

    Raises AdapterError for what PEFT's LoRA has no form for, UnsupportedError for an architecture whose names in
    transformers are not known.
    """
    check_pairs_only(adapter, "a PEFT folder")
    modules, whole = module_pairs(adapter, base), replaced_modules(adapter, base)
    decomposed = {module.magnitude is not None for module in modules}
    if len(decomposed) > 1:
        raise AdapterError(
            adapter.path,
            "is DoRA in some modules only, which PEFT's configuration cannot say",
            found=next(module.name for module in modules if module.magnitude is None),
            expected="magnitudes for all of them, or for none",
        )
    tensors: dict[str, Floats] = {}
    for module in modules:
        tensors |= _tensors(module, modules)
    tensors |= {_PREFIX + name: array for name, array in whole.items()}
    stacks = sorted(module.name for module in modules if module.stacked)
    plain = [module.name for module in modules if not module.stacked]
    config: dict[str, Any] = {
        "base_model_name_or_path": base.path.name,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_dropout": 0.0,
        "modules_to_save": sorted({name.rpartition(".")[0] for name in whole}) or None,
        "peft_type": "LORA",
        "peft_version": PEFT_VERSION,
        **_scales(adapter, modules),
        "target_modules": _short(plain, module_names(base).modules(base.tensors)),
        "target_parameters": _short(stacks, stacks, ".mlp.") or None,
        "task_type": "CAUSAL_LM",
        "use_dora": decomposed == {True},
    }
    if adapter.invocation:
        config["alora_invocation_tokens"] = list(adapter.invocation)
    return config, tensors


def check_pairs_only(adapter: Adapter, what: str) -> None:
    """Raises AdapterError for an adapter that holds what `what` is not written with."""
    refuse_parts(
        adapter,
        (
            ("rows of the embedding", adapter.rows),
            ("biases", adapter.biases),
            ("factors and rotations", adapter.transforms),
        ),
        f"which are not written to {what}",
        expected="pairs and whole tensors",
        hint="take the folder as it is, or merge it into the base",
    )


def _tensors(module: ModulePair, modules: Sequence[ModulePair]) -> dict[str, Floats]:
    name = _PREFIX + module.name
    if module.stacked:
        stack, _, parameter = name.rpartition(".")
        others = {one.name for one in modules if one.stacked}
        # PEFT wraps a module once for each of its parameters, in their order: the last is outermost.
        inner = parameter == "gate_up_proj" and f"{module.name.rpartition('.')[0]}.down_proj" in others
        name = f"{stack}.base_layer" if inner else stack
        experts, rank, columns = module.a.shape
        return {
            f"{name}.lora_A.weight": module.a.reshape(experts * rank, columns),
            f"{name}.lora_B.weight": module.b.transpose(1, 2, 0).reshape(-1, rank * experts),
        }
    if module.embedding:
        found = {f"{name}.lora_embedding_A": module.b.T, f"{name}.lora_embedding_B": module.a.T}
    else:
        found = {f"{name}.lora_A.weight": module.a, f"{name}.lora_B.weight": module.b}
    if module.magnitude is not None:
        found[f"{name}.lora_magnitude_vector"] = module.magnitude
    return found


def _scales(adapter: Adapter, modules: Sequence[ModulePair]) -> dict[str, Any]:
    """Rank and alpha of every module: as the adapter's own settings say, if they still do."""
    own = {key: adapter.settings[key] for key in SCALES if adapter.settings.get(key)}
    if {"r", "lora_alpha"} <= own.keys():
        settings = _settings(adapter.path, own)
        if settings is not None and all(_says(settings, module) for module in modules):
            return {"rank_pattern": {}, "alpha_pattern": {}, "use_rslora": False, **own}
    ranks = {module.name: module.rank for module in modules}
    alphas = {module.name: _number(module.scale * module.rank) for module in modules}
    rank, alpha = (_most_common(table.values(), 8) for table in (ranks, alphas))
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {name: one for name, one in ranks.items() if one != rank},
        "alpha_pattern": {name: one for name, one in alphas.items() if one != alpha},
        "use_rslora": False,
    }


def _settings(path: Path, own: Mapping[str, Any]) -> LoraSettings | None:
    try:
        return read_settings(path, {"peft_type": "LORA", **own})
    except AdapterError:
        return None


def _says(settings: LoraSettings, module: ModulePair) -> bool:
    same = np.float32(settings.scale_of(module.name)) == np.float32(module.scale)
    return bool(same) and settings.rank_of(module.name) == module.rank


def _most_common(values: Any, default: Any) -> Any:
    found = Counter(values).most_common(1)
    return found[0][0] if found else default


def _number(value: float) -> int | float:
    return int(value) if value == int(value) else value


def _short(chosen: Sequence[str], everything: Sequence[str], at: str = ".") -> list[str]:
    """Names that PEFT finds exactly the modules `chosen` by, of all those that there are: the ends of names where they
    are of these modules alone, else whole names."""
    found: set[str] = set()
    wanted = set(chosen)
    for name in chosen:
        end = name[name.rindex(at) + 1 :] if at in name else name
        same = {other for other in everything if other == end or other.endswith("." + end)}
        found.add(end if same <= wanted else name)
    return sorted(found)
