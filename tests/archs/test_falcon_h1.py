"""Falcon-H1's multipliers, which GGUF has in its weights: adapters need their numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import loragraft as lg
from archs.test_hf_configs import write
from archs.test_hf_peft import write_adapter
from loragraft.opening import load_adapter, open_model


def test_a_file_that_does_not_say_them_takes_no_adapter_of_peft(tmp_path: Path) -> None:
    """As llama.cpp's converter writes it. It runs, for the graph needs none of them."""
    model = open_model(write(tmp_path / "m", "falcon_h1"))
    adapter = write_adapter(tmp_path / "a", "falcon_h1")
    assert load_adapter(adapter, model).pairs
    kept = {key: value for key, value in model.metadata.items() if "multiplier" not in key}
    assert len(kept) == len(model.metadata) - 9
    model.metadata = kept
    with pytest.raises(lg.LoragraftError, match=r"this GGUF does not say its \w+, by which its rows are mul"):
        load_adapter(adapter, model)


def test_an_adapter_goes_to_gguf_and_back(tmp_path: Path) -> None:
    base = write(tmp_path / "m", "falcon_h1")
    adapter = write_adapter(tmp_path / "a", "falcon_h1")
    lg.convert_adapter(adapter, base, tmp_path / "a.gguf")
    lg.convert_adapter(tmp_path / "a.gguf", base, tmp_path / "back", to="peft")
    before, after = (load_file(path / "adapter_model.safetensors") for path in (adapter, tmp_path / "back"))
    assert before.keys() == after.keys()
    for name, values in before.items():
        np.testing.assert_allclose(after[name], values, rtol=2e-6, err_msg=name)
