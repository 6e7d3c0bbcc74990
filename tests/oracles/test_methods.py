"""Live, against PEFT: adapters of its methods on a real model, at run time and merged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import loragraft as lg
from oracles.conftest import Ask
from paths import data
from tolerances import REFERENCE, nmse

pytestmark = pytest.mark.oracle

IDS = [int(id_) for id_ in np.random.default_rng(0).integers(2, 2048, 48)]
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
METHODS: list[tuple[str, dict[str, Any], bool]] = [
    ("LoraConfig", {"r": 4, "target_modules": ALL, "use_dora": True}, True),
    ("LoraConfig", {"r": 4, "target_modules": ALL, "init_lora_weights": "pissa"}, True),
    ("AdaLoraConfig", {"init_r": 6, "target_r": 4, "target_modules": ALL, "total_step": 9}, True),
    (
        "IA3Config",
        {"target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
        True,
    ),
    ("LoHaConfig", {"r": 4, "alpha": 3, "target_modules": ALL}, True),
    ("LoKrConfig", {"r": 4, "alpha": 3, "target_modules": ALL}, True),
    ("LNTuningConfig", {"target_modules": ["input_layernorm", "norm"]}, True),
    ("VeraConfig", {"r": 16, "target_modules": ALL}, True),
    ("VeraConfig", {"r": 16, "target_modules": ALL, "save_projection": False}, True),
    ("OFTConfig", {"r": 0, "oft_block_size": 32, "target_modules": ALL}, False),
    ("BOFTConfig", {"boft_block_size": 4, "target_modules": ["q_proj", "v_proj"]}, False),
    ("HRAConfig", {"r": 4, "target_modules": ALL}, False),
]


@pytest.mark.parametrize(("config", "settings", "runs"), METHODS)
def test_a_method_of_peft(
    ask: Ask, tmp_path: Path, config: str, settings: dict[str, Any], runs: bool
) -> None:
    base, adapter = data("llama-kjv"), tmp_path / "adapter"
    ask("adapt", folder=base, config=config, settings=settings, ids=IDS, out=adapter)
    lg.merge(base, [adapter], tmp_path / "merged.gguf", type="F32")
    merged = lg.load(tmp_path / "merged.gguf", backend="reference").logits(IDS)
    own = 1e-9 if settings.get("init_lora_weights") == "pissa" else REFERENCE  # PEFT decomposes in float32
    assert nmse(merged, np.load(adapter / "merged.npy")) < own
    assert nmse(merged, lg.load(base, backend="reference").logits(IDS)) > 1e-4
    if runs:
        found = lg.load(base, [adapter], backend="reference").logits(IDS)
        assert nmse(found, np.load(adapter / "logits.npy")) < own
