"""Work spread over processes: the same bytes for any number of them, whoever dies."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import loragraft as lg
from gguf_files import write_gguf
from loragraft.formats.gguf.values import Value
from loragraft.formats.split import SplitLimits
from loragraft.progress import Noted, Silent
from loragraft.streaming import spreading
from loragraft.system.workers import crew_of
from loragraft.system.workers.crew import MAX_LOSSES
from loragraft.system.workers.processes import ProcessCrew
from paths import data

BASE, ADAPTER = data("llama-kjv"), data("llama-kjv.shakespeare")


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spreading, "PART_WEIGHTS", 1 << 17)
    monkeypatch.setattr(spreading, "BATCH_WEIGHTS", 1)


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("one") / "m.gguf"
    lg.merge(BASE, [(ADAPTER, 0.5)], path, type="Q4_K_M")
    return path.read_bytes()


class Deadly(ProcessCrew):
    """Kills a worker right after it was given the parts with these numbers."""

    def __init__(self, size: int, doomed: set[int]) -> None:
        super().__init__(size)
        self.doomed, self.given, self.killed = doomed, 0, 0

    def give(self, worker: Hashable, part: Any) -> None:
        super().give(worker, part)
        if self.given in self.doomed:
            os.kill(int(str(worker)), signal.SIGKILL)
            self.killed += 1
        self.given += 1


@pytest.mark.parametrize("workers", [1, 3])
def test_a_merge_has_the_same_bytes(tmp_path: Path, merged: bytes, workers: int) -> None:
    report = lg.merge(BASE, [(ADAPTER, 0.5)], tmp_path / "m.gguf", type="Q4_K_M", workers=workers, threads=2)
    assert (tmp_path / "m.gguf").read_bytes() == merged
    assert report.adapters[0].tensors == 56
    assert os.listdir(tmp_path) == ["m.gguf"]


def test_several_files_and_nvfp4s_scales(tmp_path: Path) -> None:
    options = lg.QuantizeOptions(split=SplitLimits(max_tensors=12))
    lg.merge(BASE, [ADAPTER], tmp_path / "one", type="NVFP4", options=options)
    lg.merge(BASE, [ADAPTER], tmp_path / "two", type="NVFP4", options=options, workers=2)
    one, two = (sorted(tmp_path.glob(f"{name}-*.gguf")) for name in ("one", "two"))
    assert len(one) > 2
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]


def test_quantizing_and_converting(tmp_path: Path) -> None:
    lg.convert(BASE, tmp_path / "f16.gguf")
    lg.convert(BASE, tmp_path / "f16-2.gguf", workers=2)
    assert (tmp_path / "f16.gguf").read_bytes() == (tmp_path / "f16-2.gguf").read_bytes()
    lg.quantize(tmp_path / "f16.gguf", tmp_path / "q.gguf", "IQ4_XS")
    words = ["quantize", tmp_path / "f16.gguf", tmp_path / "q-2.gguf", "IQ4_XS", "--workers", "2", "-t", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "loragraft", *map(str, words)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "q.gguf").read_bytes() == (tmp_path / "q-2.gguf").read_bytes()


@pytest.mark.parametrize("layout", ["modelopt", "compressed-tensors"])
def test_exporting(tmp_path: Path, layout: str) -> None:
    for name, workers in (("one", None), ("two", 2)):
        lg.export(
            BASE, tmp_path / name, format=layout, adapters=[ADAPTER], max_shard_bytes=10**6, workers=workers
        )
    one, two = (sorted((tmp_path / name).iterdir()) for name in ("one", "two"))
    assert len(one) > 4
    assert [path.name for path in one] == [path.name for path in two]
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]


def test_comparing(tmp_path: Path) -> None:
    how = lg.Measurement(data("shakespeare-valid.txt").read_text(), context=32, windows=2)
    one, two = (lg.compare(BASE, [ADAPTER], how, work_dir=tmp_path, workers=workers) for workers in (None, 2))
    assert one.as_dict() == two.as_dict()


def test_workers_that_die_are_replaced(tmp_path: Path, merged: bytes) -> None:
    said = Noted(Silent())
    crew = Deadly(2, {0, 1, 7, 20})
    lg.merge(BASE, [(ADAPTER, 0.5)], tmp_path / "m.gguf", type="Q4_K_M", workers=crew, progress=said)
    assert crew.killed == 4
    assert (tmp_path / "m.gguf").read_bytes() == merged
    assert any("4 of the workers died" in note for note in said.notes)


def test_parts_are_given_together(tmp_path: Path, merged: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several to each worker, fewer towards the end; all of them are done again by another if it dies."""
    monkeypatch.setattr(spreading, "BATCH_WEIGHTS", 1 << 19)
    batches: list[int] = []

    class Counting(Deadly):
        def give(self, worker: Hashable, part: Any) -> None:
            batches.append(len(part))
            super().give(worker, part)

    crew = Counting(2, {1, 4})
    lg.merge(BASE, [(ADAPTER, 0.5)], tmp_path / "m.gguf", type="Q4_K_M", workers=crew)
    assert crew.killed == 2
    assert (tmp_path / "m.gguf").read_bytes() == merged
    assert max(batches[:4]) > 3
    assert batches[-1] == 1


@pytest.mark.slow
def test_twenty_kills_at_random(tmp_path: Path, merged: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spreading, "PART_WEIGHTS", 1 << 15)
    chance = random.Random(20)
    doomed = set(
        itertools.accumulate(chance.randint(5, 8) for _ in range(20))
    )  # else one part might take five
    crew = Deadly(2, doomed)
    lg.merge(BASE, [(ADAPTER, 0.5)], tmp_path / "m.gguf", type="Q4_K_M", workers=crew)
    assert crew.killed == 20
    assert (tmp_path / "m.gguf").read_bytes() == merged


def test_a_part_that_kills_whoever_does_it_ends_the_run(tmp_path: Path) -> None:
    crew = Deadly(1, set(range(100)))
    with pytest.raises(lg.LoragraftError, match=f"{MAX_LOSSES} died of the same part"):
        lg.merge(BASE, [ADAPTER], tmp_path / "m.gguf", type="Q4_K_M", workers=crew)
    assert os.listdir(tmp_path) == []


def test_an_error_of_a_worker_is_the_runs(tmp_path: Path) -> None:
    values = np.ones((64, 256), np.float32)
    values[50, 3] = np.nan
    path = write_gguf(
        tmp_path / "bad.gguf",
        {"general.architecture": Value.string("llama")},
        {"blk.0.ffn_up.weight": values},
    )
    with pytest.raises(lg.QuantizeError, match="row 50, column 3 is not finite"):
        lg.quantize(path, tmp_path / "out.gguf", "Q8_0", workers=2)
    assert os.listdir(tmp_path) == ["bad.gguf"]


def test_a_driver_that_is_killed_goes_on(tmp_path: Path, merged: bytes) -> None:
    code = (
        "import os, signal, sys, loragraft as lg\n"
        "from loragraft.streaming import spreading\n"
        "from loragraft.streaming.journal import Journal\n"
        "spreading.PART_WEIGHTS, spreading.BATCH_WEIGHTS = 1 << 17, 1\n"
        "add, count = Journal.add, 0\n"
        "def add_or_die(self, *span):\n"
        "    global count\n"
        "    add(self, *span)\n"
        "    count += 1\n"
        "    if count == 10:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "Journal.add = add_or_die\n"
        "lg.merge(sys.argv[1], [(sys.argv[2], 0.5)], sys.argv[3], type='Q4_K_M', workers=2)"
    )
    out = tmp_path / "m.gguf"
    done = subprocess.run([sys.executable, "-c", code, str(BASE), str(ADAPTER), str(out)])
    assert done.returncode == -signal.SIGKILL
    assert not out.exists()
    said = Noted(Silent())
    options = lg.QuantizeOptions(resume=True)
    lg.merge(BASE, [(ADAPTER, 0.5)], out, type="Q4_K_M", options=options, workers=2, progress=said)
    assert out.read_bytes() == merged
    assert any("continuing" in note for note in said.notes)


def test_workers_that_see_no_file_send_their_rows(
    tmp_path: Path, merged: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    from loragraft.streaming.spreading import Worker

    init = Worker.__init__

    def elsewhere(self: Worker, remake: Any, digest: str, partials: Any, *rest: Any) -> None:
        init(self, remake, digest, tuple(None for _ in partials), *rest)

    monkeypatch.setattr(Worker, "__init__", elsewhere)
    lg.merge(BASE, [(ADAPTER, 0.5)], tmp_path / "m.gguf", type="Q4_K_M", workers=2)
    assert (tmp_path / "m.gguf").read_bytes() == merged


def test_workers_who_had_nothing_to_do_end_too() -> None:
    with ProcessCrew(3) as crew:
        idle = list(crew._idle)
        crew.hire(int)  # type: ignore[arg-type]
        assert len(idle) == 3
        assert len(crew.pids) == 1
    assert all(worker.returncode is not None for worker in idle)


def test_an_input_that_is_another_one_for_a_worker_is_refused(tmp_path: Path) -> None:
    from loragraft.streaming.spreading import Worker

    def nothing() -> list[Any]:
        return []

    with pytest.raises(lg.LoragraftError, match="finds other files than the driver"):
        Worker(nothing, "another digest", (), {}, 1, "model", ".", "")()


@pytest.mark.parametrize("workers", [0, -1, "two", "ray:/x", 10**6, 1.5])
def test_what_names_no_workers(workers: Any) -> None:
    with pytest.raises(lg.LoragraftError, match="workers"):
        crew_of(workers, None)
