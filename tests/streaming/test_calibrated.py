"""Rounding with error feedback, layer by layer: the model's outputs stay nearer than with rounding to nearest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from gguf_files import write_gguf
from loragraft.adapters.delta import Delta
from loragraft.archs.graphs import model_graph
from loragraft.arrays import Ids
from loragraft.backends.batch import Piece
from loragraft.backends.cpu.program import NativeBackend
from loragraft.backends.program import Backend, Options
from loragraft.backends.reference import ReferenceBackend
from loragraft.formats.gguf.model import open_gguf
from loragraft.formats.source import ModelSource
from loragraft.quants.filetypes import file_type
from loragraft.streaming import calibrated, output_gradients, rounding_site
from loragraft.streaming.calibrated import round_layers
from loragraft.streaming.calibration import Calibration, CalibrationReport
from loragraft.streaming.held_out import HeldOutLoss
from loragraft.streaming.model_writer import write_model
from loragraft.streaming.options import QuantizeOptions
from loragraft.streaming.plan import WritePlan, plan_merge, plan_quantize
from loragraft.streaming.rounding_site import change_of
from loragraft.streaming.rows import floats_of
from loragraft.streaming.steps import chunks
from loragraft.streaming.writing import WholeTensors
from loragraft.system.output import OutputFile
from small_models import LAYERS, VOCAB, small_model

MODELS = list(LAYERS)
NATIVE, REFERENCE = NativeBackend(), ReferenceBackend()


def text(windows: int = 40, length: int = 24, seed: int = 0) -> Ids:
    """Tokens with a pattern in them, so that inputs go together as those of texts do."""
    rng = np.random.default_rng(seed)
    steps = rng.choice([1, 1, 1, 2, 7], (windows, length))
    return ((rng.integers(0, VOCAB, (windows, 1)) + steps.cumsum(axis=1)) % VOCAB).astype(np.int32)


def source(folder: Path, name: str, **kinds: bool) -> ModelSource:
    model = small_model(name, np.random.default_rng(3), layers=2, **kinds)  # type: ignore[arg-type]
    return open_gguf(write_gguf(folder / "in.gguf", model.metadata, model.arrays))


def plan_of(model: ModelSource, kind: str = "Q4_0") -> WritePlan:
    options = QuantizeOptions(pure=True, calibrate=["text"], token_embedding_type="Q8_0")
    return plan_quantize(model, file_type(kind), options)


def written(
    model: ModelSource,
    out: Path,
    windows: Ids,
    kind: str = "Q4_0",
    threads: int = 2,
    resume: bool = False,
    backend: Backend = NATIVE,
    calibration: Calibration | None = None,
) -> CalibrationReport:
    plan = plan_of(model, kind)
    reports = []

    def first(tensors: WholeTensors) -> None:
        how = calibration or Calibration(windows)
        reports.append(round_layers(plan, how, backend, tensors, threads=threads))

    options = QuantizeOptions(resume=resume)
    write_model(model, plan, out, options, first=first, recipe=[windows.tobytes()], threads=threads)
    return reports[0]


def nearest(model: ModelSource, out: Path, kind: str = "Q4_0") -> None:
    write_model(model, plan_of(model, kind), out, QuantizeOptions(), threads=1)


def logits(path: Path, windows: Ids) -> npt.NDArray[np.float32]:
    model = open_gguf(path)
    options = Options(activations="f32")
    program = REFERENCE.prepare(model_graph(model), model.tensors, options)
    return program.run([Piece(program.open_sequence(), window, wants="all") for window in windows])


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("backend", [NATIVE, REFERENCE], ids=lambda backend: backend.name)
def test_outputs_stay_nearer_than_with_rounding_to_nearest(
    tmp_path: Path, name: str, backend: Backend
) -> None:
    model = source(tmp_path, name)
    report = written(model, tmp_path / "feedback.gguf", text(), backend=backend)
    nearest(model, tmp_path / "nearest.gguf")
    other = text(8, seed=1)
    true = logits(model.path, other)
    errors = [
        np.square(logits(tmp_path / f"{way}.gguf", other) - true).mean() for way in ("feedback", "nearest")
    ]
    assert errors[0] < 0.85 * errors[1]
    rounded = {cost.name.split("[")[0] for cost in report.costs}
    plan = plan_of(model)
    assert rounded == {s.name for s in plan.steps if s.type.name == "Q4_0" or s.name == "output.weight"}
    assert all(cost.cost <= cost.nearest for cost in report.costs)
    assert report.notes() == []


def test_the_types_are_those_that_were_planned(tmp_path: Path) -> None:
    model = source(tmp_path, "llama")
    written(model, tmp_path / "feedback.gguf", text())
    nearest(model, tmp_path / "nearest.gguf")
    one, other = (open_gguf(tmp_path / f"{way}.gguf") for way in ("feedback", "nearest"))
    assert one.metadata == other.metadata
    assert {n: t.type for n, t in one.tensors.items()} == {n: t.type for n, t in other.tensors.items()}
    for name in ("output_norm.weight", "token_embd.weight", "blk.1.attn_norm.weight"):
        first, second = one.tensors[name], other.tensors[name]
        assert np.array_equal(first.rows(0, first.n_rows), second.rows(0, second.n_rows))


def test_a_tied_embedding_is_rounded_by_the_inputs_of_the_output(tmp_path: Path) -> None:
    model = source(tmp_path, "llama", tied=True)
    report = written(model, tmp_path / "out.gguf", text())
    assert report.costs[-1].name == "token_embd.weight"
    assert report.costs[-1].cost < 0.7 * report.costs[-1].nearest


def test_threads_change_nothing(tmp_path: Path) -> None:
    model = source(tmp_path, "llama/experts")
    for threads in (1, 3):
        written(model, tmp_path / f"{threads}.gguf", text(), threads=threads)
    assert (tmp_path / "1.gguf").read_bytes() == (tmp_path / "3.gguf").read_bytes()


def test_a_run_that_was_stopped_is_continued_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = source(tmp_path, "llama")
    written(model, tmp_path / "whole.gguf", text())
    real = rounding_site._Rounder._rows
    rounded: list[str] = []
    last = 10

    def counting(self: Any, job: Any, *rest: Any) -> Any:
        rounded.append(job.name)
        if len(rounded) == last:
            raise KeyboardInterrupt
        return real(self, job, *rest)

    monkeypatch.setattr(rounding_site._Rounder, "_rows", counting)
    with monkeypatch.context() as killed:
        # A kill leaves the temporary file and its journal, which an exception would remove.
        killed.setattr(OutputFile, "discard", OutputFile._close)
        with pytest.raises(KeyboardInterrupt):
            written(model, tmp_path / "out.gguf", text())
    rounded, last = [], 100
    back, backwards = output_gradients.GradientPasses.back, list[int]()

    def noted(self: Any, layer: int, *rest: Any) -> Any:
        backwards.append(layer)
        return back(self, layer, *rest)

    monkeypatch.setattr(output_gradients.GradientPasses, "back", noted)
    written(model, tmp_path / "out.gguf", text(), resume=True)
    assert backwards == [1]  # the gradients of what is written are not measured again
    assert (tmp_path / "out.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()
    assert {name.split(".")[1] for name in rounded} == {"1", "weight"}


def test_experts_that_few_tokens_reach_are_rounded_to_nearest(tmp_path: Path) -> None:
    model = source(tmp_path, "llama/experts")
    report = written(model, tmp_path / "out.gguf", text(1, 6))
    assert any("_exps" in name for name in report.nearest)
    assert any("too few tokens" in note for note in report.notes())


def test_nvfp4_has_its_scale_per_tensor(tmp_path: Path) -> None:
    """Rows of 64: the feed-forward's down projection is the one whose rows hold a block."""
    model = source(tmp_path, "llama")
    report = written(model, tmp_path / "out.gguf", text(), kind="NVFP4")
    (down,) = [cost for cost in report.costs if cost.name == "blk.0.ffn_down.weight"]
    assert down.cost < 0.8 * down.nearest
    assert open_gguf(tmp_path / "out.gguf").tensors["blk.0.ffn_down.weight"].type.name == "NVFP4"
    other = text(8, seed=1)
    error = np.square(logits(tmp_path / "out.gguf", other) - logits(model.path, other)).mean()
    assert error < 0.2 * np.square(logits(model.path, other)).mean()


def held_out() -> dict[str, Ids]:
    return {"the text": text(4, seed=7), "another": text(3, seed=8)}


def test_what_is_lost_on_other_windows_is_told(tmp_path: Path) -> None:
    """The divergences are those of the files that were written, from the model before."""
    model = source(tmp_path, "llama")
    how = Calibration(text(), held_out=held_out())
    report = written(model, tmp_path / "out.gguf", text(), calibration=how)
    assert [loss.label for loss in report.held_out] == ["the text", "another"]
    plain = written(model, tmp_path / "plain.gguf", text())
    assert plain.held_out == []
    for loss, windows in zip(report.held_out, held_out().values(), strict=True):
        true, found = (log_softmax(logits(path, windows)) for path in (model.path, tmp_path / "out.gguf"))
        scored = np.arange(windows.size).reshape(windows.shape)[:, windows.shape[1] // 2 :].reshape(-1)
        expected = (np.exp(true) * (true - found)).sum(axis=-1)[scored].mean()
        assert loss.kl == pytest.approx(expected, rel=1e-3)
        assert 0 < loss.kl < 0.7 * loss.nearest
        assert f"KL {loss.kl:.4f} ± {loss.error:.4f}" in str(loss)
        assert any(note == str(loss) for note in report.notes())


def log_softmax(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    wide = x.astype(np.float64)
    return np.asarray(wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True)))


def test_a_matrix_that_does_worse_on_other_windows_falls_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Feedback under moments that have nothing to do with the inputs."""
    model = source(tmp_path, "llama")
    real = calibrated.whole_moments

    def misled(*arguments: Any) -> Any:
        moments = real(*arguments)
        if "blk.1.ffn_down.weight" in moments.names:
            odd = np.random.default_rng(0).standard_normal((64, 4)).astype(np.float32)
            moments.sums[0] = odd @ odd.T
        return moments

    monkeypatch.setattr(calibrated, "whole_moments", misled)
    how = Calibration(text(), held_out=held_out())
    report = written(model, tmp_path / "out.gguf", text(), calibration=how)
    assert report.nearest == {"blk.1.ffn_down.weight": "feedback does no better on windows held out"}
    assert any("1 tensor is rounded to nearest" in note for note in report.notes())
    assert "blk.0.ffn_down.weight" in {cost.name for cost in report.costs}


def test_text_that_gets_worse_is_said() -> None:
    loss = HeldOutLoss("other.txt", 4, 0.02, 0.001, 0.01)
    report = CalibrationReport(held_out=[loss])
    assert report.notes()[-1].startswith("on other.txt this is worse than rounding to nearest")


def test_a_run_that_goes_on_tells_it_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = source(tmp_path, "llama")
    how = Calibration(text(), held_out=held_out())
    whole = written(model, tmp_path / "whole.gguf", text(), calibration=how)

    def stop(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr(OutputFile, "discard", OutputFile._close)
        killed.setattr(calibrated, "losses_of", stop)
        with pytest.raises(KeyboardInterrupt):
            written(model, tmp_path / "out.gguf", text(), calibration=how)
    again = written(model, tmp_path / "out.gguf", text(), resume=True, calibration=how)
    assert (tmp_path / "out.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()
    assert [loss.kl for loss in again.held_out] == [loss.kl for loss in whole.held_out]


def test_what_adapters_change_is_what_rounding_is_told(tmp_path: Path) -> None:
    """Of one matrix of a stack, too."""
    rng = np.random.default_rng(4)
    model = source(tmp_path, "llama/experts")
    name = "blk.1.ffn_down_exps.weight"
    experts, out, columns = model.tensors[name].shape
    a, b = (rng.standard_normal(shape, np.float32) for shape in ((experts, 2, columns), (experts, out, 2)))
    plan = plan_merge(model, file_type("Q4_0"), QuantizeOptions(), {name: (Delta(a, b, 0.5),)})
    (step,) = (step for step in plan.steps if step.name == name)
    merged = np.concatenate([floats_of(chunk) for chunk in chunks(step)]).reshape(experts, out, columns)
    found = change_of(step, merged[1], out)
    assert found is not None
    assert np.allclose(found, 0.5 * b[1] @ a[1], atol=1e-2)
    assert change_of(replace(step, deltas=()), merged[1], out) is None
