"""`loragraft inspect`, `split` and `join`, as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from gguf_files import write_gguf
from loragraft.cli import app
from loragraft.formats.gguf.values import Value


def run(*args: str | Path, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture
def model(tmp_path: Path) -> Path:
    metadata = {
        "general.architecture": Value.string("llama"),
        "evil": Value.string("[red]x[/red]\x1b[2J"),
        "tokens": Value.strings([f"t{n}" for n in range(1000)]),
    }
    return write_gguf(
        tmp_path / "model.gguf", metadata, {f"{n}.weight": np.zeros((2, 300)) for n in range(3)}
    )


def test_inspect_prints_metadata_tensors_and_totals(model: Path) -> None:
    lines = run("inspect", model).splitlines()
    assert lines[0] == f"{model}: GGUF model"
    assert " ".join(lines[4].split()) == 'tokens arr[str] ["t0", "t1", "t2", "t3", "t4", ...] (1,000)'
    assert lines[6].split() == ["0.weight", "2", "x", "300", "F32", "2.4", "kB"]
    assert lines[9:] == ["3 tensors: 3 F32 (7.2 kB)", "1,800 weights, 7.2 kB, 32.00 bits per weight"]


def test_inspect_shows_the_files_words_as_words(model: Path) -> None:
    output = run("inspect", model)
    assert r"[red]x[/red]\x1b[2J" in output
    assert "\x1b" not in output


def test_inspect_shortens_unless_told_otherwise(model: Path) -> None:
    assert "t999" not in run("inspect", model)
    assert "t999" in run("inspect", model, "--full")
    assert "0.weight" not in run("inspect", model, "--no-tensors")
    assert json.loads(run("inspect", model, "--json"))["metadata"]["tokens"]["value"][999] == "t999"


def test_split_then_join(model: Path, tmp_path: Path) -> None:
    lines = run("split", model, tmp_path / "part", "--split-max-tensors", 2).splitlines()
    assert [line.split(": ")[1].split(",")[0] for line in lines] == ["2 tensors", "1 tensor"]
    run("join", tmp_path / "part-00001-of-00002.gguf", tmp_path / "whole.gguf")
    whole, first = (
        json.loads(run("inspect", path, "--json"))
        for path in (tmp_path / "whole.gguf", tmp_path / "part-00002-of-00002.gguf")
    )
    assert [tensor["name"] for tensor in whole["tensors"]] == ["0.weight", "1.weight", "2.weight"]
    assert [tensor["bytes"] for tensor in first["tensors"]] == [2400] * 3


def test_a_dry_run_of_split_writes_nothing(model: Path, tmp_path: Path) -> None:
    run("split", model, tmp_path / "part", "--split-max-tensors", 1, "--dry-run")
    assert list(tmp_path.iterdir()) == [model]


@pytest.mark.parametrize(
    "options",
    [
        ["--split-max-size", "4"],
        ["--split-max-tensors", "0"],
        ["--split-max-size", "1G", "--split-max-tensors", "3"],
    ],
)
def test_wrong_limits_are_usage_errors(model: Path, tmp_path: Path, options: list[str]) -> None:
    run("split", model, tmp_path / "part", *options, code=2)
    assert list(tmp_path.iterdir()) == [model]


def test_bad_files_are_one_line_and_exit_1(model: Path, tmp_path: Path) -> None:
    model.write_bytes(model.read_bytes()[:100])
    for command in (
        ["inspect", model],
        ["split", model, tmp_path / "x"],
        ["join", model, tmp_path / "x.gguf"],
    ):
        output = run(*command, code=1)
        assert output.startswith(f"loragraft: error: {model}: the file is truncated")
        assert output.count("\n") == 1
