"""Files that become shorter while they are mapped: an exception, never a signal; others' signals stay theirs."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import hostile_models as hostile
import loragraft as lg
from loragraft.formats.gguf.reader import GGUFFile
from loragraft.system import mapped

CUTS = {
    "logits": "m = lg.load(p, threads=1); os.truncate(p, 1000); m.logits([1, 2, 3])",
    "generate": "g = iter(lg.load(p).generate('the', temperature=0)); next(g); os.truncate(p, 1000); list(g)",
    "merge": "m = lg.load(p).source; os.truncate(p, 8192); lg.merge(m, [], p + '.out', type='Q8_0')",
    "within a page": "m = lg.load(p, threads=1); os.truncate(p, os.path.getsize(p) - 8); m.logits([1])",
    "thread": "m = lg.load(p, threads=4); os.truncate(p, 1000); m.perplexity('the thing ' * 200, context=16)",
}
SCRIPT = """
import faulthandler, os, sys
import loragraft as lg
faulthandler.enable()  # its handler of SIGBUS was there before
p = sys.argv[1]
try:
    {work}
except lg.LoragraftError as error:
    print(error)
"""


def run(script: str, path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("case", CUTS)
def test_a_file_cut_short_in_a_program_that_uses_the_library(tmp_path: Path, case: str) -> None:
    path = hostile.gguf(tmp_path / "model.gguf", hostile.model())
    done = run(SCRIPT.format(work=CUTS[case]), path)
    assert done.returncode == 0, done.stderr
    assert f"{path}: became shorter, or could not be read, while it was in use" in done.stdout
    assert not (tmp_path / "model.gguf.out").exists()
    assert "Traceback" not in done.stderr


def test_another_models_file_does_no_harm(tmp_path: Path) -> None:
    gc.collect()  # files that others cut short
    paths = [hostile.gguf(tmp_path / f"{name}.gguf", hostile.model()) for name in "ab"]
    first, second = (lg.load(path, threads=1) for path in paths)
    wanted = second.logits([1, 2])
    os.truncate(paths[0], 1000)
    with pytest.raises(lg.LoragraftError, match=r"a\.gguf: became shorter"):
        first.logits([1, 2])
    assert (second.logits([1, 2]) == wanted).all()
    del first
    mapped.check_intact()  # nothing is left of it


def test_a_file_that_is_replaced_is_still_the_old_one(tmp_path: Path) -> None:
    path = hostile.gguf(tmp_path / "model.gguf", hostile.model())
    model = lg.load(path, threads=1)
    wanted = model.logits([1, 2, 3])
    path.unlink()
    path.write_bytes(b"another")
    assert (model.logits([1, 2, 3]) == wanted).all()


@pytest.mark.unsanitized
def test_a_bus_error_elsewhere_does_what_it_did(tmp_path: Path) -> None:
    path = hostile.gguf(tmp_path / "model.gguf", hostile.model())
    script = """
import faulthandler, mmap, sys
import loragraft as lg
{before}
lg.load(sys.argv[1], threads=1)
with open(sys.argv[1] + ".other", "w+b") as file:
    file.truncate(8192)
    mapping = mmap.mmap(file.fileno(), 8192)
    file.truncate(1)
    mapping[5000]
"""
    silent, loud = (run(script.format(before=before), path) for before in ("", "faulthandler.enable()"))
    assert silent.returncode == loud.returncode == -7
    assert "Bus error" in loud.stderr


def test_a_closed_mapping_is_not_watched() -> None:
    gc.collect()  # else what others left may go in between
    before = len(mapped._watched)
    mapping = mapped.map_file(Path(__file__), lg.errors.FormatError)
    assert len(mapped._watched) == before + 1
    mapping.close()
    assert len(mapped._watched) == before
    with mapped.map_file(Path(__file__), lg.errors.FormatError) as mapping:
        assert len(mapped._watched) == before + 1
    assert (
        len(mapped._watched) == before
    )  # although `mapping` is still alive, as in the traceback of an error
    mapped.check_intact()


def test_more_files_than_can_be_watched(tmp_path: Path) -> None:
    path = hostile.gguf(tmp_path / "model.gguf", hostile.model())
    with pytest.raises(lg.LoragraftError, match="too many files are read at once"):
        [GGUFFile.open(path) for _ in range(4097)]
    shutil.copy(path, tmp_path / "again.gguf")
    GGUFFile.open(tmp_path / "again.gguf")
