"""Makes golden/hf-configs.json and .npz, and hf-recurrent's; needs torch and transformers:

    python tests/make_hf_configs.py [CASE ...]

With names of cases, or how they begin, these are made anew, and what there is of the others stays.

The cases are in hf_cases/, by family.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file, save_file

from hf_cases import ABSENT, BASE, CASES, RECURRENT
from hf_configs import SETS, STEP, VOCABULARY, Edit, weights

GOLDEN = Path(__file__).parent / "data" / "golden"


def idle(config: Any) -> dict[str, list[int]]:
    """What published checkpoints have and no layer takes up: Gemma 3n's keys and values of layers with another's."""
    if config.model_type != "gemma3n_text":
        return {}
    rows, layers = config.num_key_value_heads * config.head_dim, config.num_hidden_layers
    shapes = {"k_proj": [rows, config.hidden_size], "v_proj": [rows, config.hidden_size]}
    shapes["k_norm"] = [config.head_dim]
    return {
        f"model.layers.{layer}.self_attn.{name}.weight": shape
        for layer in range(layers - config.num_kv_shared_layers, layers)
        for name, shape in shapes.items()
    }


def run(kind: str, keys: dict[str, Any], edit: Edit | None, ids: torch.Tensor) -> tuple[dict[str, Any], Any]:
    base = {} if "text_config" in keys else BASE
    said = {key: value for key, value in {**base, **keys}.items() if value != ABSENT}
    config = getattr(transformers, f"{kind}Config")(**said)
    auto = transformers.AutoModelForImageTextToText if not base else transformers.AutoModelForCausalLM
    model = auto.from_config(config)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        saved = Path(folder) / "model.safetensors"
        shapes = {name: list(tensor.shape) for name, tensor in sorted(load_file(saved).items())}
        shapes = dict(sorted((shapes | idle(config)).items()))
        language = config.text_config if not base else config
        save_file(weights(shapes, language.model_type), saved, {"format": "pt"})
        path = Path(folder) / "config.json"
        written = json.loads(path.read_text())
        if edit is not None:
            edit(written)
        path.write_text(json.dumps(written))
        model = auto.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
        with torch.no_grad():
            logits = model(ids).logits[0, ::STEP].numpy()
    return {"config": written, "shapes": shapes}, logits


def main() -> None:
    """Those of `SETS` that the command line names, or all."""
    torch.set_num_threads(1)
    # activations stay as they are: docs/decisions/0010-bitnet-activations.md
    transformers.integrations.bitnet.ActQuant.apply = lambda activation: activation
    transformers.logging.set_verbosity_error()
    ids = np.random.default_rng(0).integers(2, VOCABULARY, 48)
    chosen = tuple(sys.argv[1:])
    for name, cases in zip(SETS, (CASES, RECURRENT), strict=True):
        wanted = {case: spec for case, spec in cases.items() if not chosen or case.startswith(chosen)}
        if not wanted:
            continue
        found, logits = {}, {}
        if chosen:
            found = json.loads((GOLDEN / f"{name}.json").read_text())
            logits = dict(np.load(GOLDEN / f"{name}.npz"))
        for case, spec in wanted.items():
            found[case], logits[case] = run(*spec, torch.tensor(ids[None]))
        text = json.dumps({case: found[case] for case in cases}, separators=(",", ":"))
        (GOLDEN / f"{name}.json").write_text(text.replace('},"', '},\n"') + "\n")
        np.savez_compressed(GOLDEN / f"{name}.npz", ids=ids, **{case: logits[case] for case in cases})


if __name__ == "__main__":
    main()
