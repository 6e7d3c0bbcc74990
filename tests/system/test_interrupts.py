from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gguf_files import write_gguf
from loragraft.formats.gguf.values import Value

CODE = """
import os, signal, sys
from pathlib import Path
from loragraft.system import interrupts
from loragraft.system import output
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
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (code, "")
    assert os.listdir(tmp_path) == []


def test_an_output_dropped_without_with_is_removed(tmp_path: Path) -> None:
    code = "import sys; from loragraft.system.output import OutputFile; OutputFile(sys.argv[1] + '/x', 10)"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=120)
    assert os.listdir(tmp_path) == []


TRUNCATING = """
import os, sys
from pathlib import Path
from loragraft.cli import exits
from loragraft.system import interrupts
interrupts.install()
import loragraft as lg
from loragraft.opening import open_model
with exits.reported():
    model = open_model(sys.argv[1])
    os.truncate(sys.argv[1], os.path.getsize(sys.argv[1]) // 2)
    if sys.argv[2] == "merge":
        lg.merge(model, [], sys.argv[3], type="Q8_0", threads=2)
    else:
        print(sum(int(tensor.data().sum()) for tensor in model.tensors.values()))
"""


@pytest.mark.parametrize("work", ["merge", "read"])
def test_a_file_cut_short_while_it_is_read_is_an_error(tmp_path: Path, work: str) -> None:
    """The kernel's answer to such a read is a signal, which would end the process without a word."""
    model, target = tmp_path / "model.gguf", tmp_path / "out.gguf"
    rows = np.ones((512, 4096), np.float32)
    metadata = {"general.architecture": Value.string("llama"), "llama.block_count": Value.u32(1)}
    write_gguf(model, metadata, {"token_embd.weight": rows, "output.weight": rows})
    command = [sys.executable, "-c", TRUNCATING, str(model), work, str(target)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stderr == (
        f"loragraft: error: {model}: became shorter, or could not be read, while it was in use; get it again\n"
    )
    assert done.returncode == 1
    assert os.listdir(tmp_path) == ["model.gguf"]


def test_ctrl_c_while_the_command_line_is_loaded_gives_no_traceback() -> None:
    code = (
        "import os, signal, sys, types; click = types.ModuleType('click');"
        "click.__getattr__ = lambda name: os.kill(os.getpid(), signal.SIGINT);"
        "sys.modules['click'] = click; from loragraft.__main__ import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")
