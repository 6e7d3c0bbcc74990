from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import os, signal, sys
from pathlib import Path
from loragraft import interrupts
from loragraft.formats import output
interrupts.install()
real = os.open
def interrupting(path, *args, **options):
    fd = real(path, *args, **options)
    os.kill(os.getpid(), int(sys.argv[2]))  # as soon as the file exists
    return fd
output.os.open = interrupting
with output.OutputFile(Path(sys.argv[1]) / "x", 10) as file:
    print("reached")
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 143)])
def test_a_file_just_created_is_removed(tmp_path: Path, number: signal.Signals, code: int) -> None:
    command = [sys.executable, "-c", CODE, str(tmp_path), str(int(number))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (code, "")
    assert os.listdir(tmp_path) == []


def test_an_output_dropped_without_with_is_removed(tmp_path: Path) -> None:
    code = "import sys; from loragraft.formats.output import OutputFile; OutputFile(sys.argv[1] + '/x', 10)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=60)
    assert os.listdir(tmp_path) == []
