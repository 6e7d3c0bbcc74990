"""A fine-tune that is smaller than a step of its base's own grid: rounding to nearest goes back to the base, and error
feedback does not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import loragraft as lg
from gguf_files import write_gguf
from loragraft.adapters.delta import Delta
from loragraft.arrays import Floats
from loragraft.formats.gguf.model import open_gguf
from loragraft.quants import native
from loragraft.quants.types import BY_NAME
from loragraft.streaming.change_kept import change_kept, kept_note
from loragraft.streaming.steps import Step
from paths import data
from quantized import Quantized
from small_models import small_model
from streaming.test_calibrated import log_softmax, logits, nearest, text, written


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "NVFP4"])
def test_a_small_change_of_a_base_on_the_grid_is_kept(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(3)
    model = small_model("llama", rng, layers=2)
    base, adapted = dict(model.arrays), dict(model.arrays)
    for name, weights in model.arrays.items():
        if name.startswith("blk.") and weights.ndim == 2:
            base[name] = on_the_grid(weights, kind)
            delta = rng.standard_normal((len(weights), 2)) @ rng.standard_normal((2, weights.shape[1]))
            adapted[name] = (base[name] + 0.1 * base[name].std() * delta / delta.std()).astype(np.float32)
    files = {
        name: write_gguf(tmp_path / f"{name}.gguf", model.metadata, arrays)
        for name, arrays in (("base", base), ("adapted", adapted))
    }
    source, other = open_gguf(files["adapted"]), text(8, seed=1)
    nearest(source, tmp_path / "nearest.gguf", kind)
    written(source, tmp_path / "feedback.gguf", text(), kind)
    true = log_softmax(logits(files["adapted"], other))

    def kl(name: str) -> float:
        found = log_softmax(logits(tmp_path / f"{name}.gguf", other))
        return float((np.exp(true) * (true - found)).sum(axis=-1).mean())

    kept = {way: 1 - kl(way) / kl("base") for way in ("nearest", "feedback")}
    assert kept["nearest"] < 0.45
    assert kept["feedback"] > 0.6


def on_the_grid(weights: Floats, kind: str) -> Floats:
    """What `kind` makes of them; rows of NVFP4 go on to whole blocks."""
    wide = np.pad(weights, ((0, 0), (0, -weights.shape[1] % BY_NAME[kind].block)))
    rows = native.dequantize(native.quantize(wide, BY_NAME[kind]), BY_NAME[kind])
    return np.ascontiguousarray(rows.reshape(wide.shape)[:, : weights.shape[1]])


def step_of(kind: str, source: str, size: float, rng: np.random.Generator) -> Step:
    """64 rows of 256 weights, and a change of `size` of their standard deviation."""
    values = rng.standard_normal((64, 256)).astype(np.float32)
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 256), (64, 2)))
    return Step(
        "w", Quantized("w", values, BY_NAME[source]), BY_NAME[kind], (Delta(a, b, size / np.sqrt(2)),)
    )


@pytest.mark.parametrize(
    ("kind", "source", "size", "least", "most"),
    [
        ("Q4_1", "Q4_1", 0.02, -0.1, 0.45),  # it goes back to the base
        ("Q4_0", "Q4_0", 0.02, -0.1, 0.3),
        ("Q4_1", "Q4_1", 0.5, 0.9, 1.1),  # the change is larger than a step
        ("Q4_1", "F16", 0.02, 0.7, 1.3),  # nothing to go back to
        ("Q8_0", "Q4_1", 0.02, 0.95, 1.05),
    ],
)
def test_what_is_left_of_a_change(kind: str, source: str, size: float, least: float, most: float) -> None:
    rng = np.random.default_rng(8)
    kept = change_kept([step_of(kind, source, size, rng) for _ in range(20)])
    assert kept is not None
    assert least < kept < most


def test_nothing_is_said_of_what_does_not_change() -> None:
    step = step_of("Q4_0", "Q4_0", 0.0, np.random.default_rng(8))
    assert change_kept([step]) is None
    assert change_kept([replace(step, deltas=())]) is None
    assert kept_note([replace(step, type=BY_NAME["F16"])], "stop") is None


def test_a_merge_that_goes_back_to_its_base_is_told(tmp_path: Path) -> None:
    base, adapter = data("llama-kjv"), data("llama-kjv.shakespeare")
    lg.merge(base, [], tmp_path / "base.gguf", type="Q4_0")
    options = lg.QuantizeOptions(allow_requantize=True)
    notes = {}
    for strength, source in ((0.02, tmp_path / "base.gguf"), (1.0, tmp_path / "base.gguf"), (1.0, base)):
        report = lg.merge(source, [(adapter, strength)], tmp_path / "out.gguf", type="Q4_0", options=options)
        notes[strength, source] = [note for note in report.notes if "rounding to nearest leaves" in note]
    assert len(notes[0.02, tmp_path / "base.gguf"]) == 1
    assert "go back to it; add --calibrate TEXT" in notes[0.02, tmp_path / "base.gguf"][0]
    assert notes[1.0, tmp_path / "base.gguf"] == notes[1.0, base] == []


def test_an_export_that_goes_back_to_its_base_is_told_what_to_do(tmp_path: Path) -> None:
    """And that keeps every code that was rounded with feedback."""
    base, adapter = data("llama-kjv-nvfp4"), (data("llama-kjv.shakespeare"), 0.05)
    (note,) = (
        note
        for note in lg.export(base, tmp_path / "nearest", adapters=[adapter], threads=2).notes
        if "rounding to nearest leaves" in note
    )
    assert note.endswith("merge to a GGUF with --type NVFP4 --calibrate TEXT, and export that")
    (tmp_path / "text.txt").write_text(data("text/shakespeare-valid.txt").read_text()[:6000])
    options = lg.QuantizeOptions(calibrate=[tmp_path / "text.txt"], calibrate_windows=4)
    merged = lg.merge(base, [adapter], tmp_path / "m.gguf", type="NVFP4", options=options, threads=2)
    assert not any("rounding to nearest leaves" in note for note in merged.notes)
    exported = lg.export(tmp_path / "m.gguf", tmp_path / "out", threads=2)
    assert (exported.carried_over, exported.quantized) == (28, 0)
