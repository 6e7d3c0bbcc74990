"""Live: PEFT loads the folders that are made of GGUF adapters, and runs them as those that the GGUFs were made of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import loragraft as lg
from oracles.conftest import Ask
from paths import arrays, data
from tolerances import nmse

pytestmark = pytest.mark.oracle

CASES = {
    "llama+lora": ("llama-kjv", "llama-kjv.shakespeare"),
    "llama+dora": ("llama-kjv", "llama-kjv.dora"),
    "llama+embed": ("llama-kjv", "llama-kjv.embed"),
    "qwen2+rslora": ("qwen2-bias", "qwen2-bias.rslora"),
    "starcoder2+pattern": ("starcoder2-bias", "starcoder2-bias.pattern"),
    "qwen3moe+experts": ("qwen3moe-8x", "qwen3moe-8x.experts"),
}


@pytest.mark.parametrize("case", CASES)
def test_peft_loads_what_comes_back(case: str, ask: Ask, tmp_path: Path) -> None:
    base, adapter = map(data, CASES[case])
    lg.convert_adapter(adapter, base, tmp_path / "a.gguf")
    lg.convert_adapter(tmp_path / "a.gguf", base, tmp_path / "back", to="peft")
    golden = arrays("golden/hf-logits.npz")
    ids = [int(token) for token in golden["ids"]]
    ask("logits", folder=base, adapter=tmp_path / "back", ids=ids, out=tmp_path / "logits.npy")
    assert nmse(np.load(tmp_path / "logits.npy"), golden[case]) < 1e-12
