"""Calibrated rounding over workers: the same bytes as by one process, whoever dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Hashable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import loragraft as lg
from loragraft.formats.gguf.model import open_gguf
from loragraft.formats.source import ModelSource
from loragraft.quants.filetypes import file_type
from loragraft.streaming.calibrated import Hands, round_layers
from loragraft.streaming.calibration import Calibration, CalibrationReport
from loragraft.streaming.model_writer import write_model
from loragraft.streaming.options import QuantizeOptions
from loragraft.streaming.writing import WholeTensors
from loragraft.system.workers.crew import Crew
from loragraft.system.workers.processes import ProcessCrew
from loragraft.verbs.planned import plan_again
from loragraft.verbs.quantize import _Quantizing
from paths import data
from streaming.test_calibrated import NATIVE, source, text
from streaming.test_workers import ADAPTER, BASE, Deadly

#: Seven batches of 512 tokens: four leaves of input moments, two of gradients.
WINDOWS = 130


def how() -> Calibration:
    held = {"the text": text(4, seed=7), "another": text(3, seed=8)}
    return Calibration(text(WINDOWS), held_out=held, every=1)


def rounded(
    model: ModelSource, out: Path, crew: Crew | None = None, kind: str = "Q4_0", resume: bool = False
) -> CalibrationReport:
    options = QuantizeOptions(pure=True, calibrate=["text"], token_embedding_type="Q8_0")
    work = _Quantizing(model.path, file_type(kind), options)
    plan, reports = plan_again(work), []
    hands = None if crew is None else Hands(crew, partial(plan_again, work), 1)

    def first(tensors: WholeTensors) -> None:
        reports.append(round_layers(plan, how(), NATIVE, tensors, threads=2, hands=hands))

    write_model(model, plan, out, QuantizeOptions(resume=resume), first=first, threads=1)
    return reports[0]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, bytes, CalibrationReport]]:
    """By name of a model: its file, and what one process makes of it."""
    found = {}
    for name, kind in (("llama", "Q4_0"), ("llama/experts", "NVFP4")):
        folder = tmp_path_factory.mktemp("alone")
        report = rounded(source(folder, name), folder / "out.gguf", kind=kind)
        found[name] = (folder / "in.gguf", (folder / "out.gguf").read_bytes(), report)
    return found


@pytest.mark.parametrize(
    ("workers", "name", "kind"),
    [(1, "llama", "Q4_0"), (2, "llama", "Q4_0"), (3, "llama/experts", "NVFP4")],
)
def test_the_bytes_are_those_of_one_process(
    tmp_path: Path,
    alone: dict[str, tuple[Path, bytes, CalibrationReport]],
    workers: int,
    name: str,
    kind: str,
) -> None:
    path, expected, report = alone[name]
    with ProcessCrew(workers) as crew:
        found = rounded(open_gguf(path), tmp_path / "out.gguf", crew, kind)
        assert crew.pids == []
    assert (tmp_path / "out.gguf").read_bytes() == expected
    assert found == report
    assert found.costs
    assert len(found.held_out) == 2


def test_workers_that_die_are_replaced(
    tmp_path: Path, alone: dict[str, tuple[Path, bytes, CalibrationReport]]
) -> None:
    """In the gradients, at a layer's beginning, between its products and while matrices are rounded."""
    path, expected, report = alone["llama"]
    with Deadly(2, {1, 5, 13, 24}) as crew:
        found = rounded(open_gguf(path), tmp_path / "out.gguf", crew)
        assert crew.killed == 4
    assert (tmp_path / "out.gguf").read_bytes() == expected
    assert found == report


def test_a_message_that_kills_whoever_gets_it_ends_the_run(
    tmp_path: Path, alone: dict[str, tuple[Path, bytes, CalibrationReport]]
) -> None:
    with Deadly(1, set(range(100))) as crew, pytest.raises(lg.LoragraftError, match="died of the same part"):
        rounded(open_gguf(alone["llama"][0]), tmp_path / "out.gguf", crew)
    assert os.listdir(tmp_path) == []


class Switching(ProcessCrew):
    """Gives the plan of another model to its workers."""

    def hire(self, make: Any) -> Hashable:
        object.__setattr__(make, "digest", "another")
        return super().hire(make)


def test_a_worker_that_plans_something_else_is_refused(
    tmp_path: Path, alone: dict[str, tuple[Path, bytes, CalibrationReport]]
) -> None:
    with (
        Switching(1) as crew,
        pytest.raises(lg.LoragraftError, match="one of them finds other files than the driver"),
    ):
        rounded(open_gguf(alone["llama"][0]), tmp_path / "out.gguf", crew)


def test_by_the_command_line_and_after_the_driver_was_killed(tmp_path: Path) -> None:
    """Layers that were written stay as they are; the rest is rounded by workers to the bytes of this process, however
    many threads its BLAS has."""
    given = tmp_path / "text.txt"
    given.write_text(data("shakespeare-valid.txt").read_text()[:12000])
    options = QuantizeOptions(calibrate=[given], calibrate_windows=2, prune_layers=[2, 3])
    lg.merge(BASE, [ADAPTER], tmp_path / "one.gguf", type="Q4_0", options=options)
    words = ["merge", BASE, "--lora", ADAPTER, "--type", "Q4_0", "--calibrate", "text.txt", "-t", "1", "-o"]
    words += ["two.gguf", "--calibrate-windows", "2", "--prune-layers", "2,3", "--workers", "2"]
    doom = (
        "import os, signal\n"
        "from loragraft.streaming.journal import Journal\n"
        "add, count = Journal.add, 0\n"
        "def add_or_die(self, *span):\n"
        "    global count\n"
        "    add(self, *span)\n"
        "    count += 1\n"
        "    if count == 10:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "Journal.add = add_or_die\n"
        "from loragraft.__main__ import main\n"
        "main()"
    )
    killed = subprocess.run([sys.executable, "-c", doom, *map(str, words)], cwd=tmp_path)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "two.gguf").exists()
    words = [sys.executable, "-m", "loragraft", *words, "--resume"]
    done = subprocess.run(list(map(str, words)), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "continuing" in done.stderr
    assert (tmp_path / "two.gguf").read_bytes() == (tmp_path / "one.gguf").read_bytes()


def test_a_gpu_is_not_shared_out(tmp_path: Path) -> None:
    options = QuantizeOptions(calibrate=[data("shakespeare-valid.txt")], calibrate_device="cuda")
    with pytest.raises(lg.QuantizeError, match="leave one of --workers and --calibrate-device out"):
        lg.merge(BASE, [ADAPTER], tmp_path / "m.gguf", type="Q4_K_M", options=options, workers=1)
