"""Records hybrid-quantize.json: which types llama-quantize gives the tensors of models with recurrent layers.

    PYTHONPATH=tests python make_hybrid_quantize.py folders DIR    (with torch and transformers)
    PYTHONPATH=tests LLAMA_QUANTIZE=llama-quantize python make_hybrid_quantize.py record DIR    (with loragraft)

The second fails where a tensor's bytes are not ours. By model: `metadata`, what the rules read of it; `tensors`, names
and shapes (NumPy's order); `types`, by target, in the order of the tensors. llama.cpp 0c1e57098.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from hf_cases.recurrent import BASE, CASES

TARGETS = ("Q4_K_M", "Q3_K_L", "Q5_K_S", "IQ4_XS", "Q2_K", "Q8_0", "MXFP4_MOE")
SIZES = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 8,
}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 64, "mamba_d_state": 64}
MODELS: dict[str, dict[str, Any]] = {
    "lfm2_moe": {
        "layer_types": ["conv", "full_attention"] * 4,
        "moe_intermediate_size": 256,
        "num_dense_layers": 2,
    },
    "nemotron_h_moe": {
        "num_hidden_layers": "absent",
        "layers_block_type": ["linear_attention", "moe", "full_attention", "moe"] * 2,
        "head_dim": 64,
        "mamba_head_dim": 64,
        "ssm_state_size": 64,
        "moe_intermediate_size": 256,
        "moe_shared_expert_intermediate_size": 512,
    },
    "falcon_h1": {**MAMBA, "head_dim": 64, "mamba_d_ssm": 512},
    "granitehybrid": {
        **MAMBA,
        "layer_types": ["linear_attention", "full_attention"] * 4,
        "shared_intermediate_size": 512,
    },
    "granite4": {**MAMBA, "layer_types": ["full_attention"] * 8, "shared_intermediate_size": 512},
    "mamba2": {
        **dict.fromkeys(("intermediate_size", "num_attention_heads", "num_key_value_heads"), "absent"),
        "num_heads": 8,
        "head_dim": 64,
        "state_size": 64,
    },
}
KEYS = ("block_count", "expert_count", "attention.head_count", "attention.head_count_kv")


def folders(out: Path) -> None:
    import torch
    import transformers

    torch.manual_seed(0)
    for case, more in MODELS.items():
        kind, keys, edit = CASES[case]
        said = {key: value for key, value in {**BASE, **keys, **SIZES, **more}.items() if value != "absent"}
        config = getattr(transformers, f"{kind}Config")(**said)
        model = transformers.AutoModelForCausalLM.from_config(config).to(torch.bfloat16)
        model.save_pretrained(out / case)
        path = out / case / "config.json"
        written = json.loads(path.read_text())
        if edit is not None:
            edit(written)
        path.write_text(json.dumps(written))


def record(out: Path) -> None:
    import loragraft as lg
    from hf_configs import write_tokenizer
    from loragraft.formats.gguf.model import open_gguf

    found = {}
    for case in MODELS:
        write_tokenizer(out / case)
        source = out / f"{case}.gguf"
        lg.convert(out / case, source, type="F16")
        arch = open_gguf(source).arch
        metadata = {"general.architecture": arch}
        for key, value in open_gguf(source).metadata.items():
            if key.removeprefix(f"{arch}.") in KEYS:
                metadata[key] = getattr(value.data, "tolist", lambda data=value.data: data)()
        types = {}
        for target in TARGETS:
            theirs, ours = (out / f"{case}.{whose}.gguf" for whose in ("theirs", "ours"))
            for path in (theirs, ours):
                path.unlink(missing_ok=True)
            subprocess.run(
                [os.environ["LLAMA_QUANTIZE"], source, theirs, target], check=True, capture_output=True
            )
            lg.quantize(source, ours, target)
            expected, made = open_gguf(theirs).tensors, open_gguf(ours).tensors
            assert list(made) == list(expected)
            for name, tensor in expected.items():
                assert made[name].type == tensor.type, (case, target, name)
                assert bytes(made[name].rows(0, tensor.n_rows)) == bytes(tensor.rows(0, tensor.n_rows)), name
            types[target] = [tensor.type.name for tensor in expected.values()]
        found[case] = {
            "metadata": metadata,
            "tensors": [[name, list(tensor.shape)] for name, tensor in expected.items()],
            "types": types,
        }
    text = json.dumps(found, separators=(",", ":")).replace('"types"', '\n"types"')
    Path(__file__).with_name("hybrid-quantize.json").write_text(text + "\n")


if __name__ == "__main__":
    {"folders": folders, "record": record}[sys.argv[1]](Path(sys.argv[2]))
