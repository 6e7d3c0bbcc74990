"""A run that is killed leaves the old target or none; continued, it yields the same bytes."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gguf_files import write_gguf
from killed import killed_after
from loragraft.formats.gguf.values import Value
from loragraft.progress import Silent
from loragraft.streaming import journal, steps
from loragraft.streaming.journal import Journal
from loragraft.streaming.options import QuantizeOptions
from loragraft.verbs.merge import merge
from loragraft.verbs.quantize import quantize
from peft_golden import adapter_folder, base_folder

WEIGHTS = "adapter_model.safetensors"
#: Of the moments at which runs are killed.
SEED = 1


class Notes(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)


def model(path: Path, rows: int, layers: int) -> Path:
    metadata = {"general.architecture": Value.string("llama"), "llama.block_count": Value.u32(layers)}
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((rows, 1024), dtype=np.float32)
    return write_gguf(path, metadata, {f"blk.{i}.ffn_up.weight": weights + i for i in range(layers)})


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def command(source: Path, out: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "loragraft", "quantize", *options, str(source), str(out), "IQ4_NL", "1"]


def kill_and_resume(folder: Path, times: int) -> list[str]:
    """What each continued run said of the work it found done. Killed at random moments after a number of chunks that is
    random too, as a slow machine else never gets to the second."""
    moments = random.Random(SEED)
    source, out = model(folder / "in.gguf", 2048, 10), folder / "out.gguf"
    subprocess.run(command(source, out), check=True, capture_output=True)
    wanted = sha256(out)
    out.write_bytes(b"the file that was there before")
    killed = []
    while len(killed) < times:
        process = subprocess.Popen(command(source, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        chunks = moments.randint(0, 12)
        # (Notes alone may be left of a run killed between its renaming and its tidying up.)
        while (len(list(folder.glob(".out.gguf.*.partial*"))) < 2 or written(folder) < chunks) and (
            process.poll() is None
        ):
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.1))
        process.kill()
        process.wait()
        if out.read_bytes() != b"the file that was there before":  # it was through before
            assert sha256(out) == wanted
            out.write_bytes(b"the file that was there before")
            for left in folder.glob(".out.gguf.*.partial.journal"):
                left.unlink()
            continue
        assert list(folder.glob(".out.gguf.*.partial"))
        begun = written(folder)
        result = subprocess.run(command(source, out, "--resume"), check=True, capture_output=True, text=True)
        assert sha256(out) == wanted
        assert sorted(path.name for path in folder.iterdir()) == ["in.gguf", "out.gguf"]
        out.write_bytes(b"the file that was there before")
        killed.append(result.stderr.splitlines()[0])
        assert killed[-1].startswith("continuing" if begun else "nothing to continue")
    return killed


def written(folder: Path) -> int:
    """Chunks of the run that is under way which are in its notes, behind their first line."""
    notes = [path.read_bytes() for path in folder.glob(".out.gguf.*.partial.journal")]
    return max(0, *(text.count(b"\n") - 1 for text in notes)) if notes else 0


def test_killed_three_times(tmp_path: Path) -> None:
    assert len(kill_and_resume(tmp_path, 3)) == 3


@pytest.mark.slow
def test_killed_fifty_times(tmp_path: Path) -> None:
    notes = kill_and_resume(tmp_path, 50)
    print("\n" + "\n".join(sorted(set(notes))))
    assert sum(note.startswith("continuing") for note in notes) > 10


def interrupted(source: Path, out: Path, chunks: int) -> None:
    """Quantizes in chunks of 64 rows."""
    call = "import loragraft as lg; lg.quantize(*arguments, 'Q8_0', threads=1)"
    killed_after(chunks, call, source, out, weights=64 * 1024)


def test_only_what_is_missing_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "CHUNK_WEIGHTS", 64 * 1024)  # 64 rows
    source, out = model(tmp_path / "in.gguf", 256, 4), tmp_path / "out.gguf"
    quantize(source, tmp_path / "whole.gguf", "Q8_0")
    interrupted(source, out, 7)
    written: list[tuple[str, int, int]] = []
    add = Journal.add

    def record(self: Journal, name: str, start: int, stop: int) -> None:
        written.append((name, start, stop))
        add(self, name, start, stop)

    monkeypatch.setattr(Journal, "add", record)
    notes = Notes()
    quantize(source, out, "Q8_0", options=QuantizeOptions(resume=True), progress=notes, threads=2)
    assert notes.notes == ["continuing: 44 % of the rows are written already"]
    missing = [("blk.1.ffn_up.weight", 192, 256)]
    missing += [(f"blk.{i}.ffn_up.weight", r, r + 64) for i in (2, 3) for r in range(0, 256, 64)]
    assert sorted(written) == missing
    assert out.read_bytes() == (tmp_path / "whole.gguf").read_bytes()


@pytest.mark.parametrize("change", ["input", "target", "boot"])
def test_a_changed_run_starts_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    source, out = model(tmp_path / "in.gguf", 256, 4), tmp_path / "out.gguf"
    interrupted(source, out, 2)
    options = QuantizeOptions(resume=True)
    if change == "input":
        model(source, 256, 4)
        with source.open("r+b") as file:
            file.seek(-1000, os.SEEK_END)
            file.write(b"\0" * 100)
    elif change == "target":
        options = QuantizeOptions(resume=True, override_kv={"general.name": Value.string("other")})
    else:
        monkeypatch.setattr(journal, "boot_id", lambda: "after a restart")
    notes = Notes()
    quantize(source, out, "Q8_0", options=options, progress=notes)
    assert notes.notes == ["nothing to continue: starting from the beginning"]
    quantize(source, tmp_path / "whole.gguf", "Q8_0", options=options)
    assert out.read_bytes() == (tmp_path / "whole.gguf").read_bytes()


def test_another_strength_of_a_replaced_tensor_is_another_run(tmp_path: Path) -> None:
    """Such a tensor has no delta that tells the runs apart."""
    base = base_folder("qwen2", tmp_path / "base")
    adapter = adapter_folder("qwen2+saved-embedding", tmp_path / "saved")
    kept = {name: values for name, values in load_file(adapter / WEIGHTS).items() if "lora_" not in name}
    save_file(kept, adapter / WEIGHTS)
    out = tmp_path / "out.gguf"
    call = "import loragraft as lg; lg.merge(arguments[0], [(arguments[1], 0.5)], arguments[2], threads=1)"
    killed_after(12, call, base, adapter, out)
    merge(base, [(adapter, 1.0)], tmp_path / "whole.gguf")
    report = merge(base, [(adapter, 1.0)], out, options=QuantizeOptions(resume=True))
    assert "nothing to continue: starting from the beginning" in report.notes
    assert out.read_bytes() == (tmp_path / "whole.gguf").read_bytes()


def test_without_resume_a_killed_run_is_forgotten(tmp_path: Path) -> None:
    source, out = model(tmp_path / "in.gguf", 256, 4), tmp_path / "out.gguf"
    interrupted(source, out, 2)
    (partial,) = tmp_path.glob(".out.gguf.*.partial")
    partial.write_bytes(b"\xff" * partial.stat().st_size)
    quantize(source, out, "Q8_0")
    quantize(source, tmp_path / "whole.gguf", "Q8_0")
    assert out.read_bytes() == (tmp_path / "whole.gguf").read_bytes()


def test_a_line_that_was_cut_off_counts_for_nothing(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    first = Journal(path, "plan", resume=False)
    first.add("a", 0, 8)
    first.close()
    with path.open("a") as file:
        file.write('["a", 8')
    second = Journal(path, "plan", resume=True)
    assert second.done == {"a": [(0, 8)]}
    second.add("b", 0, 1)  # joins the cut line, so neither counts
    second.add("c", 0, 1)
    second.close()
    third = Journal(path, "plan", resume=True)
    assert third.done == {"a": [(0, 8)], "c": [(0, 1)]}
    third.close()
    assert Journal(path, "another plan", resume=True).done == {}


@pytest.mark.parametrize(
    "line",
    ["5", "{}", "[1, 2, 3]", '["a", "0", 8]', '["a", 8, 0]', '["a", -8, 0]', '["a", 0, 8, 9]', "[" * 100_000],
)
def test_a_line_that_nobody_wrote_counts_for_nothing(tmp_path: Path, line: str) -> None:
    path = tmp_path / "journal"
    Journal(path, "plan", resume=False).close()
    with path.open("a") as file:
        file.write(f"{line} {zlib.crc32(line.encode()):08x}\n")
    journal = Journal(path, "plan", resume=True)
    journal.add("b", 0, 1)
    journal.close()
    journal = Journal(path, "plan", resume=True)
    assert journal.done == {"b": [(0, 1)]}
    journal.close()


def test_no_damaged_byte_changes_what_is_done(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    whole = Journal(path, "plan", resume=False)
    whole.add("blk.0.attn_q.weight", 0, 8)
    whole.add("blk.0.attn_q.weight", 8, 16)
    whole.close()
    data = path.read_bytes()
    for at in range(len(data)):
        for bit in (1, 4, 16, 64):
            path.write_bytes(data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :])
            damaged = Journal(path, "plan", resume=True)
            damaged.close()
            assert set(damaged.done) <= {"blk.0.attn_q.weight"}
            assert set(damaged.done.get("blk.0.attn_q.weight", [])) < {(0, 8), (8, 16)}
