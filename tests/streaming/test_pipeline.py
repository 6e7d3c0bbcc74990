"""The pass: chunks, errors in threads, and what is left when it is interrupted."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gguf_files import write_gguf
from killed import interrupted_after
from loragraft.errors import OutputError
from loragraft.formats.gguf.reader import GGUFFile
from loragraft.formats.gguf.values import Value
from loragraft.formats.gguf.writer import GGUFLayout, GGUFWriter, TensorSpec
from loragraft.formats.views import in_memory
from loragraft.progress import Silent
from loragraft.quants.types import BY_NAME, F16, F32
from loragraft.streaming.steps import Step, chunks
from loragraft.streaming.writing import OutputPart, run_pass


def step(shape: tuple[int, ...], kind: str = "F32") -> Step:
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    return Step("x", in_memory("x", values), BY_NAME[kind])


@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple),
    weights=st.integers(1, 100),
    cuts=st.lists(st.integers(0, 81), max_size=6),
)
@settings(deadline=None)
def test_chunks_cover_what_is_missing_once(shape: tuple[int, ...], weights: int, cuts: list[int]) -> None:
    x = step(shape)
    n = x.source.n_rows
    edges = sorted({min(cut, n) for cut in cuts})
    done = list(zip(edges[::2], edges[1::2], strict=False))
    rows = [0] * n
    for start, stop in done:
        for row in range(start, stop):
            rows[row] += 1
    for chunk in chunks(x, weights, done):
        assert chunk.start // x.matrix_rows == (chunk.stop - 1) // x.matrix_rows
        assert (chunk.stop - chunk.start) * x.source.columns <= max(weights, x.source.columns)
        for row in range(chunk.start, chunk.stop):
            rows[row] += 1
    assert rows == [1] * n


class Counter(Silent):
    def __init__(self) -> None:
        self.total = self.done = 0

    def start(self, label: str, total: int) -> None:
        self.total = total

    def advance(self, done: int) -> None:
        self.done += done


def test_progress_ends_at_its_total(tmp_path: Path) -> None:
    x, progress = step((70, 64)), Counter()
    with GGUFWriter(tmp_path / "out", {}, [TensorSpec("x", (70, 64), F32)]) as writer:
        run_pass([OutputPart(writer, [x])], threads=2, max_memory=1, progress=progress)
    assert progress.total == progress.done == 70 * 64
    with GGUFFile.open(tmp_path / "out") as file:
        assert np.array_equal(file.tensors["x"].data().view(np.float32).ravel(), np.arange(70 * 64))


def test_an_error_in_a_thread_ends_the_pass(tmp_path: Path) -> None:
    def fail(start: int, stop: int) -> np.ndarray:
        raise OutputError("the disk", "is gone")

    broken = step((4000, 64))
    broken.source.rows = fail  # type: ignore[method-assign]
    writer = GGUFWriter(tmp_path / "out", {}, [TensorSpec("x", (4000, 64), F32)])
    with pytest.raises(OutputError, match="the disk: is gone"), writer:
        run_pass([OutputPart(writer, [broken])], threads=3)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_leaves_nothing(tmp_path: Path, number: signal.Signals, code: int) -> None:
    metadata = {"general.architecture": Value.string("llama"), "llama.block_count": Value.u32(8)}
    weights = np.random.default_rng(0).standard_normal((512, 1024), dtype=np.float32)
    named = {f"blk.{i}.ffn_up.weight": weights for i in range(8)}
    source = write_gguf(tmp_path / "in.gguf", metadata, named)
    words = ("quantize", source, tmp_path / "out.gguf", "Q4_K_M", "1")
    done = interrupted_after(3, number, *words, weights=16 * 1024)
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in.gguf"]


def peak_of_quantizing(folder: Path, layers: int) -> int:
    """Resident bytes, mapped files included, of a process that quantizes 32 MB of zeros per layer."""
    source, out = folder / f"{layers}.gguf", folder / "out.gguf"
    metadata = {"general.architecture": Value.string("llama"), "llama.block_count": Value.u32(layers)}
    specs = [TensorSpec(f"blk.{i}.ffn_up.weight", (8192, 2048), F16) for i in range(layers)]
    layout = GGUFLayout.plan(metadata, specs)
    with source.open("wb") as file:
        file.write(layout.header)
        file.truncate(layout.size)  # the rest is a hole
    words = ["quantize", "-q", str(source), str(out), "Q4_0", "2"]
    done = subprocess.run(
        [sys.executable, "-c", _SHOW_PEAK, *words], capture_output=True, text=True, check=True
    )
    assert out.stat().st_size > layers * 9e6
    return int(done.stdout.split()[-1])


#: Runs the command line, then prints the peak of this process alone: what wait4 reports counts in its parent too, as
#: it was when the process was forked.
_SHOW_PEAK = """
import re
from loragraft.cli import main
try:
    main()
finally:
    status = open("/proc/self/status").read()
    print(int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) * 1024)
"""


@pytest.mark.unsanitized
def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    small, large = peak_of_quantizing(tmp_path, 1), peak_of_quantizing(tmp_path, 8)
    print(f"\npeak resident {small / 1e6:.0f} MB for 32 MB, {large / 1e6:.0f} MB for 256 MB")
    assert large < small + 40e6
    assert large < 200e6
