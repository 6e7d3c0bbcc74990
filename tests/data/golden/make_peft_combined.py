"""Records peft-combined.npz: adapters made of others by PEFT's add_weighted_adapter, as the deltas of their modules.

    python make_peft_combined.py        (torch 2.13, transformers 5.23, peft 0.21.2; on the CPU, float32)

The base is `qwen2` of peft-adapters.npz, whose rows GGUF leaves in their order. `<adapter>/<name>` and
`<adapter>/config` are four adapters of other modules, ranks and scales; `<case>/delta/<module>` is the new adapter's
delta in layer 0 and in the embedding, `<case>/logits` are its logits. What DARE drops is drawn by the rule of
`loragraft.adapters.combine`, not by torch: `bernoulli` is replaced.
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from make_peft_methods import ALL, model, written
from peft import PeftModel, get_peft_model
from peft.utils import merge_utils
from safetensors.torch import load_file

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent.parent))

from combined_recipes import RECIPES, SEED  # noqa: E402

ADAPTERS = {
    "one": {"r": 4, "lora_alpha": 6, "target_modules": ALL},
    "two": {"r": 4, "lora_alpha": 4, "target_modules": ["q_proj", "down_proj"], "use_rslora": True},
    "embedding": {"r": 4, "lora_alpha": 8, "target_modules": ["embed_tokens", "v_proj"]},
    "small": {"r": 2, "lora_alpha": 3, "target_modules": ["q_proj", "v_proj", "up_proj"]},
}
GGUF = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
}


def target_of(module: str) -> str:
    """GGUF's name of the weight of `model.layers.1.self_attn.q_proj`."""
    parts = module.split(".")
    return f"blk.{parts[parts.index('layers') + 1]}.{GGUF[parts[-1]]}.weight"


class Draws:
    """`torch.bernoulli` by the rule; PEFT calls it for A of every adapter, then for B, module by module."""

    def __init__(self, adapted: Any, names: list[str]) -> None:
        self._modules = {id(module): name for name, module in adapted.named_modules()}
        self._names = names
        self._calls: list[tuple[int, ...]] = []
        self._lora = adapted.base_model

    def __call__(self, *, adapters: list[str], target: Any, halves: bool) -> None:
        key = zlib.crc32(target_of(self._modules[id(target)]).encode())
        own = [i for i, name in enumerate(adapters) if name in target.lora_A]
        self._calls = [(SEED, key, i, half) for half in ((0, 1) if halves else (2,)) for i in own]

    def bernoulli(self, density: torch.Tensor) -> torch.Tensor:
        key = self._calls.pop(0)
        kept = np.random.default_rng(key).random(tuple(density.shape)) < density.numpy().astype(np.float64)
        return torch.from_numpy(kept.astype(np.float32))


def combine(folder: Path, paths: dict[str, Path], weights: dict[str, float], settings: dict[str, Any]) -> Any:
    names = list(weights)
    adapted = PeftModel.from_pretrained(model(folder), paths[names[0]], adapter_name=names[0])
    for name in names[1:]:
        adapted.load_adapter(paths[name], adapter_name=name)
    draws, lora = Draws(adapted, names), adapted.base_model
    halves = lora._generalized_task_arithmetic_weighted_adapter
    whole = lora._svd_generalized_task_arithmetic_weighted_adapter

    def on_halves(combination: str, adapters: list[str], given: Any, target: Any, *rest: Any) -> Any:
        if "dare" in combination:
            draws(adapters=adapters, target=target, halves=True)
        return halves(combination, adapters, given, target, *rest)

    def on_whole(
        combination: str, adapters: list[str], given: Any, rank: int, target: Any, *rest: Any, **named: Any
    ) -> Any:
        if "dare" in combination:
            draws(adapters=adapters, target=target, halves=False)
        return whole(combination, adapters, given, rank, target, *rest, **named)

    lora._generalized_task_arithmetic_weighted_adapter = on_halves
    lora._svd_generalized_task_arithmetic_weighted_adapter = on_whole
    before, merge_utils.torch.bernoulli = torch.bernoulli, draws.bernoulli
    try:
        adapted.add_weighted_adapter(
            names,
            list(weights.values()),
            "new",
            combination_type=settings["method"],
            density=settings.get("density"),
            svd_rank=settings.get("rank"),
        )
    finally:
        merge_utils.torch.bernoulli = before
    adapted.set_adapter("new")
    return adapted.eval()


def main() -> None:
    warnings.simplefilter("ignore")
    with np.load(HERE / "peft-adapters.npz") as file:
        bases = dict(file)
    ids = torch.tensor(bases["ids"].astype(np.int64))[None]
    arrays: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as work:
        folder, paths = written("qwen2", bases, Path(work) / "qwen2"), {}
        for number, (name, settings) in enumerate(ADAPTERS.items()):
            torch.manual_seed(number)
            adapted = get_peft_model(model(folder), peft.LoraConfig(task_type="CAUSAL_LM", **settings))
            generator = torch.Generator().manual_seed(number)
            with torch.no_grad():
                for parameter in adapted.parameters():
                    if parameter.requires_grad:
                        parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
            paths[name] = Path(work) / name
            adapted.save_pretrained(paths[name], save_embedding_layers=False)
            config = json.loads((paths[name] / "adapter_config.json").read_text())
            config |= {"base_model_name_or_path": "qwen2", "target_modules": sorted(config["target_modules"])}
            arrays[f"{name}/config"] = np.frombuffer(json.dumps(config).encode(), np.uint8)
            for key, value in load_file(paths[name] / "adapter_model.safetensors").items():
                arrays[f"{name}/{key}"] = value.numpy()
        for case, (weights, settings) in RECIPES.items():
            adapted = combine(folder, paths, weights, settings)
            with torch.no_grad():
                arrays[f"{case}/logits"] = adapted(ids).logits[0].numpy()
                for module, layer in adapted.named_modules():
                    has = "new" in getattr(layer, "lora_A", {}) or "new" in getattr(
                        layer, "lora_embedding_A", {}
                    )
                    if has and "layers.1." not in module:
                        name = module.removeprefix("base_model.model.")
                        delta = layer.get_delta_weight("new")
                        arrays[f"{case}/delta/{name}"] = delta.numpy()
    np.savez_compressed(HERE / "peft-combined.npz", **arrays)


if __name__ == "__main__":
    main()
