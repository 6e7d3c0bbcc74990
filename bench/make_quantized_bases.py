"""Quantized bases of one model by the programs that make them, and an adapter trained on one: for quantized_bases.py.

    python bench/make_quantized_bases.py nf4 FOLDER OUT        bitsandbytes' NF4, scales in 8 bits too
    python bench/make_quantized_bases.py int4 FOLDER OUT       compressed-tensors, 4 bits, groups of 32
    python bench/make_quantized_bases.py qlora NF4 TEXT OUT    a LoRA trained on an NF4 base
    python bench/make_quantized_bases.py merged NF4 ADAPTER PLAIN OUT
                                                               what PEFT merges it to, NF4 again, as floats
    python bench/make_quantized_bases.py logits NF4 ADAPTER TEXT OUT.npz
                                                               transformers' and PEFT's logits of one window

It runs with torch, transformers, peft, bitsandbytes and compressed-tensors, not with loragraft.
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

LENGTH, AT_ONCE, STEPS, RATE = 128, 4, 40, 2e-3
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def nf4(folder: str, out: str) -> None:
    how = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=how, dtype=torch.bfloat16)
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(folder).save_pretrained(out)


def int4(folder: str, out: str) -> None:
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
    from compressed_tensors.quantization.utils import calculate_qparams

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
    how = QuantizationConfig.model_validate(
        {
            "config_groups": {"all": {"targets": ["Linear"], "weights": weights}},
            "ignore": ["lm_head"],
            "format": "pack-quantized",
            "quantization_status": "frozen",
        }
    )
    apply_quantization_config(model, how)
    for module in model.modules():
        scheme = getattr(module, "quantization_scheme", None)
        if scheme is not None:
            groups = module.weight.data.float().unflatten(-1, (-1, 32))
            scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), scheme.weights)
            module.weight_scale.data.copy_(scale)
            if hasattr(module, "weight_zero_point"):
                module.weight_zero_point.data.copy_(zero)
    ModelCompressor.from_pretrained_model(model).compress_model(model)
    model.save_pretrained(out)
    ModelCompressor(quantization_config=how).update_config(out)
    AutoTokenizer.from_pretrained(folder).save_pretrained(out)


def windows(folder: str, text: str, length: int) -> torch.Tensor:
    ids = AutoTokenizer.from_pretrained(folder)(Path(text).read_text(), return_tensors="pt").input_ids[0]
    return ids[: len(ids) // length * length].reshape(-1, length)


def qlora(base: str, text: str, out: str) -> None:
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_pretrained(base)
    model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    how = LoraConfig(r=16, lora_alpha=32, target_modules=TARGETS, lora_dropout=0.0, task_type="CAUSAL_LM")
    model = get_peft_model(model, how)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0)
    ids = windows(base, text, LENGTH)
    order = torch.randperm(len(ids))[: STEPS * AT_ONCE].reshape(STEPS, AT_ONCE)
    for step, chosen in enumerate(order):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 5) * (1 - step / STEPS)
        began = time.perf_counter()
        batch = ids[chosen]
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step}: loss {float(loss):.4f}, {time.perf_counter() - began:.1f} s", flush=True)
    model.save_pretrained(out)


def merged(base: str, adapter: str, plain: str, out: str) -> None:
    import bitsandbytes
    from peft import PeftModel
    from safetensors.torch import save_file

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).merge_and_unload()
    tensors = {name: parameter.data for name, parameter in model.named_parameters()}
    for name, module in model.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            weight = module.weight
            found = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
            tensors[f"{name}.weight"] = found
    Path(out).mkdir()
    save_file(
        {name: tensor.float().contiguous() for name, tensor in tensors.items()},
        Path(out) / "model.safetensors",
    )
    for path in Path(plain).glob("*"):
        if path.suffix in (".json", ".jinja"):
            shutil.copy(path, out)


def logits(base: str, adapter: str, text: str, out: str) -> None:
    """Linear layers are made plain first: on a CPU bitsandbytes multiplies in 16 bits."""
    import bitsandbytes
    from peft import PeftModel

    model = AutoModelForCausalLM.from_pretrained(base)
    for name, module in list(model.named_modules()):
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            weight = bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
            plain = torch.nn.Linear(*weight.shape[::-1], bias=False)
            plain.weight.data = weight.float()
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, plain)
    torch.nn.Module.float(model)  # transformers refuses it for a model that was quantized
    model.is_loaded_in_4bit = model.is_quantized = False
    model = PeftModel.from_pretrained(model, adapter).eval()
    window = windows(base, text, 64)[:1]
    with torch.no_grad():
        found = model(input_ids=window).logits[0].numpy()
        with model.disable_adapter():
            without = model(input_ids=window).logits[0].numpy()
    np.savez(out, ids=window[0].numpy().astype(np.int32), adapted=found, base=without)


if __name__ == "__main__":
    {f.__name__: f for f in (nf4, int4, qlora, merged, logits)}[sys.argv[1]](*sys.argv[2:])
