"""Rounding with error feedback for models with recurrent layers: convolutions, the gated delta rule, Mamba-2."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from archs.test_hf_configs import write
from loragraft.opening import open_model
from loragraft.streaming.calibrated_costs import calibrated_costs
from loragraft.streaming.calibration import Calibration
from loragraft.streaming.layers import Layers
from loragraft.streaming.walk import Walk
from streaming.test_calibrated import NATIVE, plan_of, text, written

CASES = ["lfm2", "qwen3_5", "granitehybrid", "nemotron_h"]


@pytest.mark.parametrize("case", CASES)
def test_other_text_is_nearer_than_with_rounding_to_nearest(tmp_path: Path, case: str) -> None:
    how = Calibration(text(), held_out={"other": text(4, seed=7)})
    report = written(open_model(write(tmp_path / "m", case)), tmp_path / "out.gguf", text(), calibration=how)
    (loss,) = report.held_out
    assert loss.kl < 0.95 * loss.nearest
    assert report.remarks == []  # gradients pass
    entered = [f"blk.0.{name}.weight" for name in ("shortconv.in_proj", "attn_qkv", "ssm_in")]
    assert set(entered) & {cost.name for cost in report.costs}


@pytest.mark.parametrize("case", CASES)
def test_windows_go_through_as_the_engine_reads_them(tmp_path: Path, case: str) -> None:
    """Each from its own beginning, batch by batch."""
    layers = Layers(plan_of(open_model(write(tmp_path / "m", case))), NATIVE, 2)
    windows = text(5, 300)
    hidden = None
    for layer in range(layers.count):
        part = layers.part(layer)
        weights = layers.weights(part)
        walked = Walk(part, weights, windows, hidden, 2).output()
        hidden = layers.run(part, weights, windows, hidden)
        np.testing.assert_allclose(walked, hidden, rtol=1e-2, atol=2e-4 * np.abs(hidden).max())


@pytest.mark.parametrize("case", ["qwen3_5", "nemotron_h"])
def test_costs_add_up_to_what_is_measured(tmp_path: Path, case: str) -> None:
    """Random models move further than to second order: a factor of 2.5."""
    model = open_model(write(tmp_path / "m", case))
    windows, plan = text(60), plan_of(model, "Q5_0")
    types = {step.name: [step.type] for step in plan.steps if step.type.is_quantized}
    costs = calibrated_costs(plan, types, Calibration(windows), NATIVE, threads=2)
    how = Calibration(windows, held_out={"other": text(12, seed=9)})
    (loss,) = written(model, tmp_path / "out.gguf", windows, "Q5_0", calibration=how).held_out
    assert loss.kl / 2.5 < sum(costs.values()) < loss.kl * 2.5
