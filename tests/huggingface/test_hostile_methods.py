"""Small adapters of PEFT's other methods that would make large arrays: refused before they are made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import hostile_models as hostile
from loragraft.errors import AdapterError
from loragraft.opening import load_adapter, open_model
from test_hostile_files import bounded

_MODULE = "base_model.model.model.layers.1.self_attn.q_proj"

#: The configuration, shapes, and what the message says.
LARGE: dict[str, tuple[dict[str, Any], dict[str, tuple[int, ...]], str]] = {
    "LoKr of two large factors": (
        {"peft_type": "LOKR", "r": 8, "alpha": 8},
        {"lokr_w1": (900, 900), "lokr_w2": (900, 900)},
        "a change of .810000, 810000.",
    ),
    "LoHa of a long weight": (
        {"peft_type": "LOHA", "r": 1, "alpha": 1},
        {f"hada_w{i}_{part}": (90_000, 1) if part == "a" else (1, 90_000) for i in (1, 2) for part in "ab"},
        "a change of .90000, 90000.",
    ),
    "LoHa of a rank whose square is large": (
        {"peft_type": "LOHA", "r": 30_000, "alpha": 1},
        {f"hada_w{i}_{part}": (40, 30_000) if part == "a" else (30_000, 40) for i in (1, 2) for part in "ab"},
        "attn_q",
    ),
    "VeRA of a rank that its tensors have not": (
        {"peft_type": "VERA", "r": 900_000_000, "save_projection": False, "projection_prng_key": 0},
        {"vera_lambda_b": (32,), "vera_lambda_d": (2,)},
        "found .2,., expected .900000000,.",
    ),
    "QALoRA of a large group": (
        {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "use_qalora": True, "qalora_group_size": 900_000_000},
        {"lora_A.weight": (2, 16), "lora_B.weight": (32, 2)},
        "does not fit groups of 900000000 inputs",
    ),
}


def load(folder: Path, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    base, adapter = hostile.checkpoint(folder, hostile.checkpoint_jsons())
    (adapter / "adapter_config.json").write_text(json.dumps({"target_modules": ["q_proj"], **config}))
    arrays = {f"{_MODULE}.{part}": np.ones(shape, np.float32) for part, shape in shapes.items()}
    save_file(arrays, adapter / "adapter_model.safetensors")
    load_adapter(adapter, open_model(base))


@pytest.mark.parametrize("case", LARGE)
def test_large_arrays(tmp_path: Path, case: str) -> None:
    config, shapes, says = LARGE[case]
    with bounded(), pytest.raises(AdapterError, match=says):
        load(tmp_path, config, shapes)


@pytest.mark.parametrize("kind", [["LORA"], {"a": 1}, 7, None])
def test_kinds_that_are_no_names(tmp_path: Path, kind: object) -> None:
    with pytest.raises(AdapterError, match="does not say what method of peft it is"):
        load(tmp_path, {"peft_type": kind}, {"lora_A.weight": (2, 32), "lora_B.weight": (32, 2)})
