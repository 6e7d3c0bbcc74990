"""Records bitnet.npz: transformers' logits of BitNet models whose weights are packed.

    PYTHONPATH=tests TORCHDYNAMO_DISABLE=1 python make_bitnet.py

The weights are those of the case "bitnet" of hf-configs.json, of three levels each, packed by transformers itself.
`<linear class>`: logits without rounded activations; `<linear class>-rounded`: with them, as transformers computes;
`packed`: one weight's bytes.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from transformers.integrations import bitnet

from hf_configs import STEP, weights

GOLDEN = Path(__file__).parent
SHOWN = "model.layers.0.self_attn.k_proj.weight"


def main() -> None:
    record = json.loads((GOLDEN / "hf-configs.json").read_text())["bitnet"]
    ids = torch.tensor(np.load(GOLDEN / "hf-configs.npz")["ids"][None])
    apply, found = bitnet.ActQuant.apply, {}
    quantize = bitnet.BitLinear.activation_quant
    for linear_class in ("autobitlinear", "bitlinear"):
        tensors = {}
        for name, values in weights(record["shapes"], "bitnet").items():
            tensor = torch.tensor(values)
            if name.endswith("_proj.weight"):
                scale = tensor.abs().mean()
                levels = (tensor / scale).round().clamp(-1, 1)
                tensors[name] = bitnet.pack_weights(levels)
                unit = scale if linear_class == "autobitlinear" else 1 / scale
                tensors[f"{name}_scale"] = unit.reshape(1)
            else:
                tensors[name] = tensor
        found["packed"] = tensors[SHOWN].numpy()
        with tempfile.TemporaryDirectory() as folder:
            save_file(tensors, Path(folder) / "model.safetensors", {"format": "pt"})
            said = {"quant_method": "bitnet", "linear_class": linear_class, "quantization_mode": "offline"}
            config = {**record["config"], "quantization_config": said}
            (Path(folder) / "config.json").write_text(json.dumps(config))
            model = transformers.AutoModelForCausalLM.from_pretrained(
                folder, attn_implementation="eager", dtype=torch.float32
            ).eval()
        for suffix, rounds in (("-rounded", True), ("", False)):
            bitnet.ActQuant.apply = apply if rounds else (lambda activation: activation)
            bitnet.BitLinear.activation_quant = (
                quantize if rounds else (lambda self, values: (values, torch.ones(())))
            )
            with torch.no_grad():
                found[linear_class + suffix] = model(ids).logits[0, ::STEP].numpy()
    np.savez_compressed(GOLDEN / "bitnet.npz", **found)


if __name__ == "__main__":
    main()
