"""A fault at a system call that writes: afterwards there is the old file or the whole new one, and nothing is left but
what a killed run can be resumed from; resumed, it gives the same bytes.

`make test-faults` tries every call with every kind of fault; without LORAGRAFT_FAULTS a sample of them.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import hostile_models as hostile
import loragraft as lg
from faults.server import KINDS
from loragraft.formats.split import SplitLimits

VERBS = ["quantize", "merge", "merge to parts", "merge calibrated", "convert", "export", "split", "join"]
#: Those that a killed run can be resumed of.
RESUMED = {"quantize", "merge", "merge to parts", "merge calibrated", "convert", "export"}
SAMPLE = int(os.environ.get("LORAGRAFT_FAULTS", "10"))
"""Points of each verb; 0: all."""
OLD = b"what was there before"
HERE = Path(__file__).parent


class Server:
    """Verbs with faults: see server.py."""

    def __init__(self, inputs: Path, shim: Path) -> None:
        environment = {**os.environ, "LD_PRELOAD": str(shim), "OPENBLAS_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, HERE / "server.py", inputs],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )

    def ask(self, verb: str, call: int, kind: str, folder: Path, resume: bool = False) -> list[Any]:
        """What the verb said, how many calls there were, and which was the faulty one."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([verb, call, kind, str(folder), resume]) + "\n")
        self.process.stdin.flush()
        answer: list[Any] = json.loads(self.process.stdout.readline())
        return answer


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    hostile.checkpoint(folder, hostile.checkpoint_jsons())
    hostile.gguf(folder / "model.gguf", hostile.model())
    (folder / "text").write_text(hostile.TEXT * 20)
    lg.split(folder / "model.gguf", folder / "part", SplitLimits(max_tensors=9))
    return folder


@pytest.fixture(scope="module")
def server(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs a C compiler, on Linux")
    shim = tmp_path_factory.mktemp("shim") / "shim.so"
    subprocess.run([compiler, "-O1", "-shared", "-fPIC", HERE / "shim.c", "-o", shim, "-ldl"], check=True)
    running = Server(inputs, shim)
    with running.process:  # its stdin is closed, and it is waited for
        yield running


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below the folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def fresh(folder: Path, verb: str) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    if verb in ("quantize", "merge", "merge calibrated", "convert", "join"):
        (folder / "out.gguf").write_bytes(OLD)
    return folder


@pytest.mark.parametrize("verb", VERBS)
def test_a_fault_leaves_the_old_file_or_the_whole_new_one(
    tmp_path: Path, inputs: Path, server: Server, verb: str
) -> None:
    before = contents(inputs)
    folder = fresh(tmp_path / "out", verb)
    said, calls, _ = server.ask(verb, 1 << 40, "none", folder)
    assert said == "done"
    wanted = contents(folder)
    assert calls > 5
    points = [(call, kind) for call in range(1, calls + 1) for kind in KINDS[1:]]
    if SAMPLE:
        points = random.Random(verb).sample(points, min(SAMPLE, len(points)))
    outcomes: Counter[str] = Counter()
    for call, kind in points:
        folder = fresh(tmp_path / "out", verb)
        old = contents(folder)
        said, _, name = server.ask(verb, call, kind, folder)
        where = f"{verb}: {kind} at call {call} ({name}) of {calls}: {said}"
        found = contents(folder)
        whole = {path: data for path, data in found.items() if ".partial" not in path}
        left = found.keys() - whole.keys()
        for path, data in whole.items():
            assert data in (old.get(path), wanted.get(path)), where
        assert old.keys() <= whole.keys(), where
        if said == "done":
            assert whole == wanted, where
            assert not left or name == "unlink", where
        elif said.startswith("refused: "):
            assert not left or name == "unlink", where
            assert kind in ("ENOSPC", "EIO", "EINTR"), where
        else:
            assert said == "killed by 9", where
            assert kind.startswith("kill"), where
        outcomes[said.split(":")[0]] += 1
        if said == "killed by 9" or left:
            # Once more: a killed run can be continued, and what it left is taken up or goes.
            again, _, _ = server.ask(verb, 1 << 40, "none", folder, verb in RESUMED)
            assert again == "done", f"{where}; again: {again}"
            assert contents(folder) == wanted, where
            outcomes["continued"] += 1
    assert contents(inputs) == before
    print(f"{verb}: {len(points)} faults of {calls} calls, {dict(outcomes)}")
