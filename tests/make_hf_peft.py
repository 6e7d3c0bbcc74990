"""Makes golden/hf-peft.json and .npz, and the like; needs torch, transformers and peft:

    python tests/make_hf_peft.py [CASE ...]

With names of cases, or how they begin, these are made anew, and what there is of the others stays.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers
from safetensors.numpy import load_file, save_file

from hf_configs import ADAPTED, PEFT_STEP, weights
from hf_configs import kind as language

KEPT = (
    "peft_type",
    "r",
    "lora_alpha",
    "target_modules",
    "target_parameters",
    "rank_pattern",
    "alpha_pattern",
    "fan_in_fan_out",
    "task_type",
)
#: Modules that PEFT wraps and then cannot run: these give several values.
BROKEN = {"llama4_text": ["router"], "phimoe": ["router"]}
#: With an adapter of these numbers its recurrence is so steep that float32 differs by 4e-11 between two orders of sums;
#: the same language model has another adapter.
INEXACT = ("qwen3_5-vl",)
#: The linears of the language model inside a multimodal one.
LANGUAGE = r".*\.(language_model|text_model)\..*_proj(_\w+)?"
#: Of types whose `out_proj` PEFT refuses, as kernels of Mamba do not call it.
TARGETS = {
    "mamba2": ["in_proj"],
    "falcon_h1": ["in_proj", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "nemotron_h": ["in_proj", "q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"],
}
#: Cases of a type that has a first case of another architecture.
ALSO = ("bitnet-online", "nemotron_h_moe", "granite4", "granite4-experts", "gemma4-experts")
GOLDEN = Path(__file__).parent / "data" / "golden"


def run(record: dict[str, Any], ids: torch.Tensor) -> tuple[dict[str, Any], Any]:
    """What PEFT writes of an adapter on every linear, and the logits with it."""
    with tempfile.TemporaryDirectory() as name:
        base, adapter = Path(name) / "base", Path(name) / "adapter"
        base.mkdir()
        kind, within = record["config"]["model_type"], "text_config" in record["config"]
        save_file(
            weights(record["shapes"], language(record["config"])),
            base / "model.safetensors",
            {"format": "pt"},
        )
        (base / "config.json").write_text(json.dumps(record["config"]))
        auto = transformers.AutoModelForImageTextToText if within else transformers.AutoModelForCausalLM
        model = auto.from_pretrained(base, attn_implementation="eager", dtype=torch.float32)
        settings = peft.LoraConfig(
            r=2,
            lora_alpha=2,
            target_modules=LANGUAGE if within else TARGETS.get(kind, "all-linear"),
            exclude_modules=BROKEN.get(kind),
            task_type="CAUSAL_LM",
        )
        peft.get_peft_model(model, settings).save_pretrained(adapter)
        file = adapter / "adapter_model.safetensors"
        shapes = {key: list(tensor.shape) for key, tensor in sorted(load_file(file).items())}
        save_file(weights(shapes), file, {"format": "pt"})
        said = json.loads((adapter / "adapter_config.json").read_text())
        model = auto.from_pretrained(base, attn_implementation="eager", dtype=torch.float32)
        tuned = peft.PeftModel.from_pretrained(model, adapter).eval()
        with torch.no_grad():
            logits = tuned(ids).logits[0, ::PEFT_STEP].numpy()
    config = {key: said[key] for key in KEPT if said.get(key)}
    if not isinstance(config["target_modules"], str):
        config["target_modules"] = sorted(config["target_modules"])
    return {"config": config, "shapes": shapes}, logits


def main() -> None:
    torch.set_num_threads(1)
    # activations stay as they are: docs/decisions/0010-bitnet-activations.md
    transformers.integrations.bitnet.ActQuant.apply = lambda activation: activation
    transformers.logging.set_verbosity_error()
    chosen = tuple(sys.argv[1:])
    for name, output in ADAPTED.items():
        records = json.loads((GOLDEN / f"{name}.json").read_text())
        ids = torch.tensor(np.load(GOLDEN / f"{name}.npz")["ids"][None])
        first: dict[str, str] = {}
        for case, record in records.items():
            if case not in INEXACT:
                first.setdefault(case if case in ALSO else record["config"]["model_type"], case)
        wanted = [case for case in first.values() if not chosen or case.startswith(chosen)]
        if not wanted:
            continue
        found, logits = {}, {}
        if chosen and (GOLDEN / f"{output}.json").exists():
            found = json.loads((GOLDEN / f"{output}.json").read_text())
            logits = dict(np.load(GOLDEN / f"{output}.npz"))
        for case in wanted:
            found[case], logits[case] = run(records[case], ids)
        made = [case for case in first.values() if case in found]
        text = json.dumps({case: found[case] for case in made}, separators=(",", ":"))
        (GOLDEN / f"{output}.json").write_text(text.replace('},"', '},\n"') + "\n")
        np.savez_compressed(GOLDEN / f"{output}.npz", **{case: logits[case] for case in made})


if __name__ == "__main__":
    main()
