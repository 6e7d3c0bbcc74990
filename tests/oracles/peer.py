"""Runs in .venv-oracle: does with torch, transformers, peft and compressed-tensors what the tests ask.

A job is a line of JSON on the standard input, `[name, {arguments}]`; the answer a line of JSON on the standard output:
null, or a text that says what went wrong. Results are files, at paths that the arguments name.
"""

from __future__ import annotations

import json
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    QuantizationScheme,
    apply_quantization_config,
    preset_name_to_scheme,
)
from compressed_tensors.quantization.lifecycle.forward import dequantize
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam
from compressed_tensors.utils.match import match_name
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, CompressedTensorsConfig

SIZES = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "vocab_size": 2048,
    "initializer_range": 0.1,
}
EXPERTS = {"num_experts_per_tok": 2}
#: model_type: what its configuration has besides SIZES.
SMALL = {
    "llama": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 5e5,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
    },
    "mistral": {"sliding_window": None, "head_dim": 64},
    "mixtral": {"num_local_experts": 4, **EXPERTS},
    "qwen2": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "tie_word_embeddings": True},
    "qwen2_moe": {
        "num_experts": 4,
        "moe_intermediate_size": 64,
        "shared_expert_intermediate_size": 192,
        **EXPERTS,
    },
    "qwen3": {
        "head_dim": 64,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1e4,
            "factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    "qwen3_moe": {
        "num_experts": 4,
        "moe_intermediate_size": 64,
        "norm_topk_prob": True,
        "head_dim": 64,
        **EXPERTS,
    },
    "starcoder2": {"use_bias": True, "tie_word_embeddings": True},
}

#: Companions of weights, which have no place in a plain checkpoint.
SCALES = (
    "weight_scale",
    "weight_global_scale",
    "weight_shape",
    "weight_zero_point",
    "input_scale",
    "input_global_scale",
    "k_scale",
    "v_scale",
)


def decompress(folder: str, out: str) -> None:
    """Every weight of a compressed-tensors checkpoint as the library computes it, in float32, as a plain checkpoint."""
    source, target = Path(folder), Path(out)
    config = json.loads((source / "config.json").read_text())
    quantization = QuantizationConfig(**config.pop("quantization_config"))
    with safe_open(source / "model.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dict)
    weights: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        stem, _, part = name.rpartition(".")
        if part == "weight_packed":
            *stack, half = tensor.shape
            packed = tensor.reshape(-1, half)  # a stack of experts is one matrix to the library
            codes = unpack_fp4_from_uint8(packed, packed.shape[0], 2 * half, dtype=torch.float32)
            scale, whole = tensors[f"{stem}.weight_scale"], tensors[f"{stem}.weight_global_scale"]
            scale, args = scale.reshape(len(packed), -1), scheme_of(stem, quantization).weights
            weights[f"{stem}.weight"] = dequantize(
                codes, scale.float(), args=args, dtype=torch.float32, global_scale=whole
            ).reshape(*stack, 2 * half)
        elif part == "weight" and tensor.dtype == torch.float8_e4m3fn:
            scale, args = tensors[f"{stem}.weight_scale"].float(), scheme_of(stem, quantization).weights
            weights[name] = dequantize(tensor.float(), scale, args=args, dtype=torch.float32)
        elif part not in SCALES:
            weights[name] = tensor.float()
    if config["model_type"] == "llama4_text":
        weights = stacked(weights)
    target.mkdir()
    save_file(weights, target / "model.safetensors", {"format": "pt"})
    (target / "config.json").write_text(json.dumps({**config, "dtype": "float32"}))
    for path in source.glob("*token*"):
        shutil.copy(path, target)


def stacked(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Llama 4's experts as transformers has them, [experts, in, out], gate before up; quantized checkpoints have them
    one by one."""
    found: dict[str, list[torch.Tensor]] = {}
    rest = {}
    for name, weight in weights.items():
        stem, is_expert, last = name.rpartition(".experts.")
        if is_expert and last[0].isdigit():
            found.setdefault(f"{stem}.experts.{last.split('.')[1]}", []).append(weight.T)
        else:
            rest[name] = weight
    experts = {name: torch.stack(each) for name, each in found.items()}
    for name in [name for name in experts if name.endswith(".gate_proj")]:
        stem = name.removesuffix(".gate_proj")
        parts = [experts.pop(f"{stem}.{part}_proj") for part in ("gate", "up")]
        rest[f"{stem}.gate_up_proj"] = torch.cat(parts, -1)
    return {**rest, **{name: each.contiguous() for name, each in experts.items()}}


def scheme_of(module: str, quantization: QuantizationConfig) -> QuantizationScheme:
    return next(
        scheme
        for scheme in quantization.config_groups.values()
        if any(target == "Linear" or match_name(module, target) for target in scheme.targets)
    )


def compress(folder: str, out: str, groups: dict[str, list[str]]) -> None:
    """A checkpoint as the library compresses it; `groups`: its preset schemes, and the modules that each is for."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    schemes = {name: preset_name_to_scheme(name, targets) for name, targets in groups.items()}
    apply_quantization_config(model, QuantizationConfig(config_groups=schemes, ignore=["lm_head"]))
    for module in model.modules():
        scheme = getattr(module, "quantization_scheme", None)
        if scheme is None:
            continue
        whole = None
        if hasattr(module, "weight_global_scale"):
            largest = module.weight.float().abs().max()
            whole = module.weight_global_scale.data = generate_gparam(-largest, largest)
        largest = _largest(module.weight.float().abs(), scheme.weights)
        scale, _ = calculate_qparams(-largest, largest, scheme.weights, whole)
        module.weight_scale.data = scale.to(module.weight_scale.dtype)
        for name, parameter in module.named_parameters(recurse=False):
            if name.startswith("input"):
                parameter.data.fill_(0.25)
            if name.endswith("zero_point"):
                parameter.data.zero_()
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(out)
    compressor.update_config(out)
    for path in Path(folder).glob("*token*"):
        shutil.copy(path, out)


def _largest(magnitudes: torch.Tensor, args: QuantizationArgs) -> torch.Tensor:
    """The largest magnitude of all that share a scale."""
    rows, columns = magnitudes.shape
    if args.strategy == "tensor":
        return magnitudes.max().reshape(1)
    tall, wide = {"channel": (1, columns), "tensor_group": (1, 16), "block": args.block_structure}[
        args.strategy
    ]
    return magnitudes.reshape(rows // tall, tall, columns // wide, wide).amax((1, 3))


def logits(
    folder: str, ids: list[int], out: str, adapter: str | None = None, compressed: bool = False
) -> None:
    """float32 logits [tokens, vocabulary]; `compressed`: the checkpoint as transformers itself decompresses it."""
    options: dict[str, Any] = (
        {"quantization_config": CompressedTensorsConfig(dequantize=True)} if compressed else {}
    )
    model, seen = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, **options
    )
    missing = {kind: sorted(names) for kind, names in seen.items() if names}
    # the scales of activations belong to no weight, and nothing is quantized at run time here
    surprises = [
        name for name in missing.pop("unexpected_keys", []) if not name.endswith("input_global_scale")
    ]
    if missing or surprises:
        raise RuntimeError(f"transformers does not find the model it expects: {missing} {surprises}")
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    _save_logits(model.float(), ids, out)


def merge(folder: str, adapter: str, out: str) -> None:
    """peft's own merge, in float32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    merged.save_pretrained(out)
    for path in Path(folder).glob("*token*"):
        shutil.copy(path, out)


def save(kind: str, tokenizer: str, ids: list[int], out: str, adapter: str | None = None) -> None:
    """A random model as this version of transformers saves it, with a chat template, and its logits; at `adapter` a
    random LoRA as peft saves it, with the logits of both."""
    torch.manual_seed(7)
    config = AutoConfig.for_model(kind, **SIZES, **SMALL[kind], bos_token_id=0, eos_token_id=1)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.2)
    model.save_pretrained(out)
    words = AutoTokenizer.from_pretrained(tokenizer)
    words.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    words.save_pretrained(out)
    _save_logits(model, ids, f"{out}/logits.npy")
    if adapter is not None:
        targets = ["q_proj", "k_proj", "v_proj", "o_proj", "embed_tokens"]
        options = LoraConfig(
            r=4, lora_alpha=6, target_modules=targets, use_rslora=True, init_lora_weights=False
        )
        adapted = get_peft_model(model, options)
        adapted.save_pretrained(adapter)
        _save_logits(adapted, ids, f"{adapter}/logits.npy")


def adapt(folder: str, config: str, settings: dict[str, Any], ids: list[int], out: str) -> None:
    """An adapter of any method, every trained number disturbed, as peft saves it; beside it the logits of the base with
    what was saved, and of peft's own merge."""
    torch.manual_seed(5)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    adapted = get_peft_model(base, getattr(peft, config)(task_type="CAUSAL_LM", **settings))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter) * (1 + parameter.abs())
    adapted.save_pretrained(out)
    fresh = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = PeftModel.from_pretrained(fresh, out)
    _save_logits(model, ids, f"{out}/logits.npy")
    _save_logits(model.merge_and_unload(), ids, f"{out}/merged.npy")


def tokenize(folder: str, texts: list[str], out: str) -> None:
    """Ids of the texts, and what they decode to again."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = [tokenizer(text).input_ids for text in texts]
    decoded = [tokenizer.decode(each, skip_special_tokens=True) for each in ids]
    backend = Tokenizer.from_file(f"{folder}/tokenizer.json")
    assert ids == [backend.encode(text).ids for text in texts], (
        "transformers reads tokenizer.json in its own way"
    )
    facts = {"ids": ids, "texts": decoded, "chat_template": tokenizer.chat_template}
    Path(out).write_text(json.dumps(facts))


def _save_logits(model: torch.nn.Module, ids: list[int], out: str) -> None:
    model.eval()
    with torch.no_grad():
        np.save(out, model(torch.tensor(ids)[None]).logits[0].float().numpy())


JOBS: dict[str, Callable[..., None]] = {
    job.__name__: job for job in (adapt, compress, decompress, logits, merge, save, tokenize)
}


def main() -> None:
    torch.set_num_threads(2)
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is not an answer
    for line in sys.stdin:
        name, arguments = json.loads(line)
        try:
            JOBS[name](**arguments)
            problem = None
        except Exception:
            problem = traceback.format_exc()
        print(json.dumps(problem), file=answers, flush=True)


if __name__ == "__main__":
    main()
