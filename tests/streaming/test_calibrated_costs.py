"""What types are expected to cost, from gradients, against what they were measured to cost."""

from __future__ import annotations

from pathlib import Path

import pytest

from loragraft.quants.types import BY_NAME
from loragraft.streaming.calibrated_costs import calibrated_costs
from loragraft.streaming.calibration import Calibration
from streaming.test_calibrated import NATIVE, plan_of, source, text, written

Q4_0, Q8_0 = BY_NAME["Q4_0"], BY_NAME["Q8_0"]


@pytest.mark.parametrize("name", ["llama", "llama/experts", "starcoder2"])
def test_costs_add_up_to_what_is_measured(name: str, tmp_path: Path) -> None:
    """All matrices as Q4_0, the embedding as Q8_0. Random models move further than to second order: a factor of 2."""
    model = source(tmp_path, name)
    windows = text(60)
    plan = plan_of(model)
    types = {step.name: [step.type, Q8_0] for step in plan.steps if step.type.is_quantized}
    costs = calibrated_costs(plan, types, Calibration(windows), NATIVE, threads=2)
    assert set(costs) == {(weight, kind) for weight, kinds in types.items() for kind in kinds}
    how = Calibration(windows, held_out={"other": text(12, seed=9)})
    (loss,) = written(model, tmp_path / "out.gguf", windows, calibration=how).held_out
    expected = sum(costs[step.name, step.type] for step in plan.steps if step.name in types)
    assert loss.kl / 2 < expected < loss.kl * 2
    for step in plan.steps:
        if step.type == Q4_0:
            assert 0 < costs[step.name, Q8_0] < 0.02 * costs[step.name, Q4_0]


def test_threads_change_nothing(tmp_path: Path) -> None:
    model = source(tmp_path, "llama")
    windows, plan = text(20), plan_of(model)
    types = {step.name: [Q4_0] for step in plan.steps if step.type.is_quantized}
    one, two = (calibrated_costs(plan, types, Calibration(windows), NATIVE, threads=n) for n in (1, 2))
    assert one == two


def test_a_type_without_a_grid_costs_what_nearest_rounding_does(tmp_path: Path) -> None:
    model = source(tmp_path, "llama")
    windows, plan = text(20), plan_of(model)
    types = {"blk.0.ffn_down.weight": [Q4_0, BY_NAME["Q2_0"]]}
    costs = calibrated_costs(plan, types, Calibration(windows), NATIVE, threads=2)
    assert costs["blk.0.ffn_down.weight", BY_NAME["Q2_0"]] > 5 * costs["blk.0.ffn_down.weight", Q4_0] > 0
