"""Records peft-methods.npz: adapters of PEFT's other methods on the two bases of peft-adapters.npz, and their logits.

    python make_peft_methods.py        (torch 2.13, transformers 5.23, peft 0.21.2; on the CPU, float32)

Keys as in peft-adapters.npz, without the bases; `<case>/merged` are the logits after merge_and_unload, where that can
be. Every trainable number is random; each adapter is saved, loaded on a fresh base, and then run. `peft-methods.json`
says for every method of PEFT whether it merges, and what the error was if not.
"""

from __future__ import annotations

import json
import tempfile
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from peft import PeftModel, get_peft_model
from peft.tuners.lora.variants import QALoraLinearVariant
from safetensors.numpy import save_file
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

QV = ["q_proj", "v_proj"]
ALL = [*QV, "k_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
HERE = Path(__file__).parent

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama+adalora": (
        "AdaLoraConfig",
        {"init_r": 6, "target_r": 4, "lora_alpha": 9, "target_modules": ALL, "total_step": 9},
    ),
    "qwen2+adalora-pruned": (
        "AdaLoraConfig",
        {"init_r": 6, "target_r": 4, "lora_alpha": 9, "target_modules": ALL, "total_step": 9},
    ),
    "llama+ia3": (
        "IA3Config",
        {"target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    ),
    "qwen2+ia3": ("IA3Config", {"target_modules": [*QV, "up_proj"], "feedforward_modules": []}),
    "llama+ia3-columns": (
        "IA3Config",
        {"target_modules": [*QV, "o_proj"], "feedforward_modules": ["o_proj", "q_proj"]},
    ),
    "llama+loha": ("LoHaConfig", {"r": 3, "alpha": 5, "target_modules": ALL}),
    "qwen2+loha-pattern": (
        "LoHaConfig",
        {
            "r": 3,
            "alpha": 5,
            "target_modules": ALL,
            "rank_pattern": {"up_proj": 2, ".*v_proj": 5},
            "alpha_pattern": {"q_proj": 2},
        },
    ),
    "llama+lokr": ("LoKrConfig", {"r": 2, "alpha": 3, "target_modules": ALL}),
    "llama+lokr-both": (
        "LoKrConfig",
        {"r": 2, "alpha": 3, "target_modules": ALL, "decompose_both": True, "decompose_factor": 2},
    ),
    "qwen2+lokr-full": ("LoKrConfig", {"r": 16, "alpha": 8, "target_modules": ALL, "decompose_factor": 4}),
    "llama+lntuning": (
        "LNTuningConfig",
        {"target_modules": ["input_layernorm", "post_attention_layernorm", "norm"]},
    ),
    "qwen2+tokens-alone": (
        "TrainableTokensConfig",
        {"token_indices": [3, 38, 7], "target_modules": ["embed_tokens"]},
    ),
    "llama+vera": ("VeraConfig", {"r": 8, "target_modules": ALL}),
    "qwen2+vera-not-saved": (
        "VeraConfig",
        {"r": 8, "target_modules": ALL, "save_projection": False, "projection_prng_key": 12345},
    ),
    "llama+pissa-again": (
        "LoraConfig",
        {"r": 4, "lora_alpha": 6, "target_modules": ALL, "init_lora_weights": "pissa"},
    ),
    "llama+oft": ("OFTConfig", {"oft_block_size": 8, "r": 0, "target_modules": ALL}),
    "qwen2+oft-cayley": (
        "OFTConfig",
        {"r": 4, "oft_block_size": 0, "target_modules": ALL, "use_cayley_neumann": False},
    ),
    "llama+oft-shared": (
        "OFTConfig",
        {"oft_block_size": 8, "r": 0, "target_modules": QV, "block_share": True, "coft": True, "eps": 0.05},
    ),
    "llama+boft": ("BOFTConfig", {"boft_block_size": 8, "target_modules": ALL}),
    "qwen2+boft-num": ("BOFTConfig", {"boft_block_size": 0, "boft_block_num": 2, "target_modules": QV}),
    "llama+hra": ("HRAConfig", {"r": 4, "target_modules": ALL}),
    "qwen2+hra-gs": ("HRAConfig", {"r": 4, "target_modules": ALL, "apply_GS": True}),
    "llama+ia3-saved": (
        "IA3Config",
        {"target_modules": ["k_proj"], "feedforward_modules": [], "modules_to_save": ["lm_head"]},
    ),
    "llama+more-than-named": ("LoraConfig", {"r": 4, "lora_alpha": 6, "target_modules": ALL}),
}


def disturb(adapted: Any) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter += 0.1 * noise * (1 + parameter.abs())


def written(base: str, arrays: Any, folder: Path) -> Path:
    """A base of peft-adapters.npz as a folder."""
    folder.mkdir()
    tensors = {key.partition("/")[2]: arrays[key] for key in arrays if key.startswith(f"{base}/")}
    (folder / "config.json").write_bytes(tensors.pop("config").tobytes())
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def pruned(adapted: Any) -> None:
    """As AdaLoRA's allocator leaves it at the end: some ranks of each module masked, one module gone."""
    pattern, generator = {}, torch.Generator().manual_seed(5)
    for name, module in adapted.named_modules():
        if hasattr(module, "lora_E") and len(module.lora_E):
            keep = torch.rand(6, generator=generator) < 0.6
            keep[0] = True
            if "layers.1.mlp.up_proj" in name:
                keep[:] = False
            pattern[f"{name.removeprefix('base_model.model.')}.lora_E.default"] = keep.tolist()
    adapted.peft_config["default"].rank_pattern = pattern


def record(case: str, folder: Path, kind: str, settings: dict[str, Any], ids: torch.Tensor) -> dict[str, Any]:
    options = {"task_type": "CAUSAL_LM", **settings}
    torch.manual_seed(1)
    adapted = get_peft_model(model(folder), getattr(peft, kind)(**options))
    disturb(adapted)
    if case.endswith("pruned"):
        pruned(adapted)
    with tempfile.TemporaryDirectory() as out:
        adapted.save_pretrained(out)
        config = json.loads((Path(out) / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = folder.name
        for key in ("target_modules", "feedforward_modules"):
            if isinstance(config.get(key), list):
                config[key] = sorted(config[key])
        if case.endswith("more-than-named"):
            config["target_modules"] = ["q_proj", "down_proj"]
            (Path(out) / "adapter_config.json").write_text(json.dumps(config))
        found: dict[str, Any] = {"config": json.dumps(config).encode()}
        found |= load_file(Path(out) / "adapter_model.safetensors")
        fresh = PeftModel.from_pretrained(model(folder), out).eval()
        with torch.no_grad():
            found["logits"] = fresh(ids).logits[0]
            found["merged"] = fresh.merge_and_unload()(ids).logits[0]
    return found


def with_initial(folder: Path, ids: torch.Tensor) -> dict[str, Any]:
    """An adapter whose start was taken out of the base (as CorDA's and LoRA-GA's), and that start. PEFT makes a plain
    LoRA of both; that one's logits are the oracle."""
    torch.manual_seed(1)
    settings = peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=ALL, init_lora_weights="pissa", task_type="CAUSAL_LM"
    )
    adapted = get_peft_model(model(folder), settings)
    with tempfile.TemporaryDirectory() as out:
        start, end, plain = (Path(out) / name for name in ("start", "end", "plain"))
        adapted.peft_config["default"].init_lora_weights = True
        adapted.save_pretrained(start)
        adapted.peft_config["default"].init_lora_weights = "pissa"
        disturb(adapted)
        adapted.save_pretrained(end)
        adapted.save_pretrained(plain, path_initial_model_for_weight_conversion=str(start))
        config = json.loads((end / "adapter_config.json").read_text())
        config |= {"base_model_name_or_path": folder.name, "target_modules": sorted(config["target_modules"])}
        config["init_lora_weights"] = "corda"
        found: dict[str, Any] = {
            "config": json.dumps(config).encode(),
            **load_file(end / "adapter_model.safetensors"),
        }
        found |= {
            f"start/{key}": value for key, value in load_file(start / "adapter_model.safetensors").items()
        }
        fresh = PeftModel.from_pretrained(model(folder), plain).eval()
        with torch.no_grad():
            found["logits"] = fresh(ids).logits[0]
    return found


def qalora() -> dict[str, Any]:
    """One linear through PEFT's own forward; the layer itself needs a GPTQ kernel."""
    generator = torch.Generator().manual_seed(4)
    a, b = (torch.randn(shape, generator=generator) for shape in ((4, 32 // 8), (16, 4)))
    x = torch.randn(5, 32, generator=generator)
    layer = types.SimpleNamespace(
        lora_A={"d": types.SimpleNamespace(weight=a)},
        lora_B={"d": types.SimpleNamespace(weight=b)},
        lora_dropout={"d": torch.nn.Identity()},
        scaling={"d": 1.5},
        qalora_group_size={"d": 8},
        training=False,
        in_features=32,
    )
    y = QALoraLinearVariant.forward(layer, active_adapter="d", x=x, result=torch.zeros(5, 16))
    return {"a": a, "b": b, "x": x, "y": y}


def mergeable(folders: dict[str, Path]) -> dict[str, Any]:
    """Whether merge_and_unload works, for every method, with settings as small as it takes."""
    table: dict[str, Any] = {}
    for name in sorted(peft.PeftType.__members__):
        kind = peft.PEFT_TYPE_TO_CONFIG_MAPPING.get(
            peft.PeftType[name]
        ) or peft.PEFT_TYPE_TO_CONFIG_MAPPING.get(name)
        try:
            fields = kind.__dataclass_fields__
            options: dict[str, Any] = {"task_type": "CAUSAL_LM"}
            wanted = {
                "target_modules": QV,
                "r": 4,
                "feedforward_modules": [],
                "num_virtual_tokens": 4,
                "token_indices": [3],
            }
            options |= {key: value for key, value in wanted.items() if key in fields}
            if name == "LN_TUNING":
                options["target_modules"] = ["input_layernorm"]
            if name == "TRAINABLE_TOKENS":
                options["target_modules"] = ["embed_tokens"]
            options |= {
                "ADALORA": {"total_step": 9},
                "ADAPTION_PROMPT": {"adapter_len": 2, "adapter_layers": 1, "target_modules": None},
                "BEFT": {"target_modules": ["q_proj"]},
                "C3A": {"block_size": 8},
                "FOURIERFT": {"n_frequency": 10},
                "OFT": {"r": 0, "oft_block_size": 8},
                "ROAD": {"group_size": 8},
                "VBLORA": {"vector_length": 8, "num_vectors": 4},
                "WAVEFT": {"n_frequency": 10},
            }.get(name, {})
            torch.manual_seed(0)
            base = model(folders["qwen2" if name == "BEFT" else "llama"])  # which has biases
            adapted = get_peft_model(base, kind(**options))
            if not hasattr(adapted, "merge_and_unload"):
                raise AttributeError("no merge_and_unload")
            merged = adapted.merge_and_unload()
            table[name] = {"merges": merged is not None}
        except Exception as problem:
            table[name] = {"merges": False, "error": f"{type(problem).__name__}: {problem}"[:160]}
    return table


def main() -> None:
    warnings.simplefilter("ignore")
    with np.load(HERE / "peft-adapters.npz") as file:
        bases = dict(file)
    ids = torch.tensor(bases["ids"].astype(np.int64))[None]
    arrays: dict[str, Any] = {}

    def add(name: str, found: dict[str, Any]) -> None:
        for key, value in found.items():
            if isinstance(value, bytes):
                arrays[f"{name}/{key}"] = np.frombuffer(value, np.uint8)
            else:
                arrays[f"{name}/{key}"] = value.detach().numpy()

    with tempfile.TemporaryDirectory() as work:
        folders = {base: written(base, bases, Path(work) / base) for base in ("llama", "qwen2")}
        for case, (kind, settings) in CASES.items():
            add(case, record(case, folders[case.split("+")[0]], kind, settings, ids))
        add("llama+with-start", with_initial(folders["llama"], ids))
        add("qalora", qalora())
        table = mergeable(folders)
    np.savez_compressed(HERE / "peft-methods.npz", **arrays)
    (HERE / "peft-methods.json").write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
