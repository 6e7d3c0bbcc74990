"""What a command loads: a start that costs more than the work would be felt in every script and completion."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gguf_files import write_gguf
from loragraft.cli import COMMANDS
from loragraft.formats.gguf.values import Value

RUN = """
import json, sys
from loragraft.cli import app
try:
    app(sys.argv[1:], prog_name="loragraft")
finally:
    with open("modules.json", "w") as file:
        json.dump(sorted(sys.modules), file)
"""


def loaded(folder: Path, *args: str) -> set[str]:
    """The modules that the command has loaded when it ends."""
    subprocess.run([sys.executable, "-c", RUN, *args], cwd=folder, capture_output=True, check=True)
    return set(json.loads((folder / "modules.json").read_text()))


def test_quantizing_a_gguf_loads_neither_gguf_nor_tokenizers_nor_rich(tmp_path: Path) -> None:
    metadata = {"general.architecture": Value.string("llama")}
    write_gguf(tmp_path / "in.gguf", metadata, {"blk.0.ffn_up.weight": np.zeros((4, 256))})
    modules = loaded(tmp_path, "quantize", "in.gguf", "out.gguf", "Q8_0")
    assert (tmp_path / "out.gguf").exists()
    assert "numpy" in modules
    others = {"gguf", "yaml", "requests", "tqdm", "tokenizers", "rich", "importlib.metadata"}
    ours = {"archs", "backends", "graph", "huggingface", "inference", "quants.reference"}
    assert modules & (others | {f"loragraft.{name}" for name in ours}) == set()


def test_help_loads_no_command_and_no_numpy(tmp_path: Path) -> None:
    assert loaded(tmp_path, "--help") & {"numpy", *(f"loragraft.cli.{name}" for name in COMMANDS)} == set()


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_loads_nothing_heavy(tmp_path: Path, command: str) -> None:
    assert loaded(tmp_path, command, "--help") & {"numpy", "gguf", "rich", "loragraft._native"} == set()
