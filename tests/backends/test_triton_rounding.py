"""Calibrated rounding on a GPU does what the native core does, but for the order of sums."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from gguf_files import write_gguf
from gpu import needs_triton
from loragraft.arrays import Floats
from loragraft.backends.cpu.program import NativeBackend
from loragraft.backends.triton.device import open_device
from loragraft.backends.triton.rounding import TritonRounding
from loragraft.errors import QuantizeError
from loragraft.formats.gguf.model import open_gguf
from loragraft.quants import accelerator, rounding
from loragraft.quants.arranged import Moments, Schedule
from loragraft.quants.feedback import prepare
from loragraft.quants.filetypes import file_type
from loragraft.quants.grids import GRIDS
from loragraft.quants.types import BY_NAME
from loragraft.streaming.calibrated import round_layers
from loragraft.streaming.calibration import Calibration
from loragraft.streaming.model_writer import write_model
from loragraft.streaming.moments import InputMoments, input_moments
from loragraft.streaming.options import QuantizeOptions
from loragraft.streaming.plan import plan_quantize
from loragraft.streaming.walk import Product
from loragraft.streaming.writing import WholeTensors
from loragraft.system.threads import in_threads
from small_models import VOCAB, small_model
from tolerances import nmse

pytestmark = needs_triton
COLUMNS = 256


@pytest.fixture(scope="module")
def on_gpu() -> TritonRounding:
    return TritonRounding(open_device("cuda"))


@pytest.fixture
def at_hand(on_gpu: TritonRounding) -> Iterator[TritonRounding]:
    with accelerator.using(on_gpu):
        yield on_gpu


def inputs(tokens: int = 700, columns: int = COLUMNS) -> Floats:
    """Of sizes of their own, and going together."""
    rng = np.random.default_rng(0)
    mixed = rng.standard_normal((tokens, 40)) @ rng.standard_normal((40, columns))
    sized = (mixed + rng.standard_normal((tokens, columns))) * np.exp(rng.standard_normal(columns))
    return np.asarray(sized, np.float32)


def weights(columns: int) -> Floats:
    return (np.random.default_rng(1).standard_t(5, (17, columns)) * 0.02).astype(np.float32)


def ready(name: str, columns: int) -> Moments:
    x = inputs(columns=columns)
    return prepare(x.T @ x, GRIDS[name].sub)


#: Half floats or tables for scales, with and without offsets, levels that are whole numbers and others. The interpreter
#: takes seconds for each.
@pytest.mark.parametrize("name", ["Q4_0", "Q5_1", "Q4_K", "NVFP4"])
def test_rows_cost_what_the_native_core_makes_them_cost(name: str, on_gpu: TritonRounding) -> None:
    columns = 256 if name == "Q4_K" else 64
    w, grid, moments = 50 * weights(columns), GRIDS[name], ready(name, columns)
    step = 32 if grid.scales.table is None else 1
    parts = grid.split(rounding.nearest(w, BY_NAME[name], np.ones(columns, np.float32)))
    for plan in (Schedule(0, (), forward=False), Schedule(step, (step,))):
        expected, losses = rounding.feedback(w, grid, parts, moments, plan)
        with accelerator.using(on_gpu):
            found, own = rounding.feedback(w, grid, parts, moments, plan)
        # Until a number falls on the other side of a middle, everything is the same.
        assert np.mean(found.levels == expected.levels) > 0.99
        assert np.mean(found.scales == expected.scales) > 0.98
        assert own.sum() == pytest.approx(losses.sum(), rel=0.01)


def test_the_factor_multiplies_out(at_hand: TritonRounding) -> None:
    x = inputs()
    h = (x.T @ x / len(x)).astype(np.float32) + np.eye(COLUMNS, dtype=np.float32)
    panels = [h[: first + 16, first : first + 16].copy() for first in range(0, COLUMNS, 16)]
    diagonal = at_hand.factor(panels)
    upper = np.zeros((COLUMNS, COLUMNS))
    for b, panel in enumerate(panels):
        upper[: len(panel), b * 16 : (b + 1) * 16] = panel
    np.testing.assert_array_equal(np.tril(upper, -1), 0)
    np.testing.assert_array_equal(diagonal, np.diagonal(upper))
    assert nmse(upper @ upper.T, h) < 1e-12
    with pytest.raises(QuantizeError, match="not positive definite; calibrate on more text"):
        at_hand.factor([-h])


def moments(threads: int = 1) -> InputMoments:
    x = inputs(90, 200)
    counts = {"b": np.linspace(0.5, 2, 90, dtype=np.float32)}
    return input_moments(Product(("a", "b"), [x[:50], x[50:]], None), counts, 1, threads)


def test_second_moments(on_gpu: TritonRounding) -> None:
    expected = moments()
    with accelerator.using(on_gpu):
        found = moments()
    assert nmse(found.sums, expected.sums) < 1e-12
    np.testing.assert_array_equal(found.sums[0], found.sums[0].T)
    assert found.mean_squares == pytest.approx(expected.mean_squares, rel=1e-5)


def test_threads_take_turns(at_hand: TritonRounding) -> None:
    w, grid, ready_moments = weights(32), GRIDS["Q8_0"], ready("Q8_0", 32)
    parts = grid.split(rounding.nearest(w, BY_NAME["Q8_0"], np.ones(32, np.float32)))
    plan = Schedule(0, (), forward=True)

    def run(_: int) -> Floats:
        return rounding.feedback(w, grid, parts, ready_moments, plan)[1]

    first, second = in_threads(run, range(2), 2)
    np.testing.assert_array_equal(first, second)


@pytest.mark.slow
def test_a_model_is_rounded_on_the_gpu(tmp_path: Path, on_gpu: TritonRounding) -> None:
    """A small one, with feedback and with the gradients of its outputs: as near to its logits as natively."""
    small = small_model("llama", np.random.default_rng(3), layers=1)
    model = open_gguf(write_gguf(tmp_path / "in.gguf", small.metadata, small.arrays))
    windows = (np.arange(24 * 40).reshape(40, 24) * 7 % 40 % VOCAB).astype(np.int32)
    plan = plan_quantize(model, file_type("Q4_0"), QuantizeOptions(pure=True, calibrate=["text"]))
    costs = []
    for where in (None, on_gpu):

        def first(tensors: WholeTensors) -> None:
            how = Calibration(windows)
            report = round_layers(plan, how, NativeBackend(), tensors, threads=1)
            costs.append({cost.name: (cost.nearest, cost.cost) for cost in report.costs})

        with accelerator.using(where):
            write_model(model, plan, tmp_path / "out.gguf", QuantizeOptions(), first=first, threads=1)
    assert costs[0].keys() == costs[1].keys()
    for name, (nearest, cost) in costs[0].items():
        assert costs[1][name] == pytest.approx((nearest, cost), rel=0.05), name
