"""Nothing that a command reads is replaced or removed by it, by whatever name it is called."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import hostile_models as hostile
from intake_table import shows
from loragraft.cli import app
from loragraft.formats.split import SplitLimits
from loragraft.verbs.split import split


@pytest.fixture
def gguf(tmp_path: Path) -> Path:
    return hostile.gguf(tmp_path / "model.gguf", hostile.model())


def refused(*words: object) -> str:
    result = CliRunner().invoke(app, list(map(str, words)))
    assert result.exit_code == 1, result.output
    assert result.stderr.count("\n") == 1
    return result.stderr


def test_rules_are_not_replaced_by_the_model(tmp_path: Path, gguf: Path) -> None:
    rules = tmp_path / "rules"
    rules.write_text("attn_v=q8_0")
    (tmp_path / "same").hardlink_to(rules)
    for output in (rules, tmp_path / "same", tmp_path / "." / "rules"):
        said = refused("quantize", gguf, output, "Q4_K_M", "--tensor-type-file", rules)
        assert "the output is also an input" in said
        said = refused("merge", gguf, "-o", output, "--tensor-type-file", rules)
        assert "the output is also an input" in said
    assert rules.read_text() == "attn_v=q8_0"


def test_a_picture_over_the_text(tmp_path: Path, gguf: Path) -> None:
    text = tmp_path / "text.png"
    text.write_text(hostile.TEXT)
    words = ("check", gguf, "--lora", tmp_path / "adapter", "--text", text, "--plot", text)
    assert "text.png: the output is also an input" in refused(*words)
    assert text.read_text() == hostile.TEXT


def test_two_outputs_of_one_name(tmp_path: Path, gguf: Path) -> None:
    text = tmp_path / "text"
    text.write_text(hostile.TEXT)
    words = ("budget", gguf, "--text", text, "-o", tmp_path / "x.png", "--plot", tmp_path / "." / "x.png")
    assert "would be written twice" in refused(*words)


def test_another_file_of_a_split_model(tmp_path: Path, gguf: Path) -> None:
    files = [shard.path for shard in split(gguf, tmp_path / "part", SplitLimits(max_tensors=8))]
    before = [path.read_bytes() for path in files]
    text = tmp_path / "text"
    text.write_text(hostile.TEXT)
    assert "also an input" in refused("join", files[0], files[1])
    assert "also an input" in refused("imatrix", files[0], "--text", text, "-o", files[2])
    assert [path.read_bytes() for path in files] == before


@shows("in place", "a file of the folder", "refused")
def test_a_file_in_a_folder_that_is_read(tmp_path: Path) -> None:
    base, _ = hostile.checkpoint(tmp_path, hostile.checkpoint_jsons())
    before = (base / "config.json").read_bytes()
    assert "also an input" in refused("convert", base, "-o", base / "config.json")
    assert (base / "config.json").read_bytes() == before


@shows(
    "in place",
    "a GGUF beside the checkpoint or the adapter, the same run twice",
    "written, and written again",
)
def test_what_lies_in_a_folder_and_is_not_read(tmp_path: Path) -> None:
    """A run that writes into the folder that it reads can be run again."""
    base, adapter = hostile.checkpoint(tmp_path, hostile.checkpoint_jsons())
    for _ in range(2):
        words = [
            ("convert", base, "-o", base / "out.gguf"),
            ("merge", base, "--lora", adapter, "-o", base / "merged.gguf"),
            ("convert", adapter, "--base", base, "-o", adapter / "adapter.gguf"),
            ("quantize", base / "out.gguf", base / "small.gguf", "Q8_0"),
        ]
        for command in words:
            result = CliRunner().invoke(app, list(map(str, command)))
            assert result.exit_code == 0, result.output
    assert (base / "out.gguf").is_file()


@shows("in place", "the weights themselves", "refused")
def test_weights_in_a_folder_stay(tmp_path: Path) -> None:
    base, adapter = hostile.checkpoint(tmp_path, hostile.checkpoint_jsons())
    for folder, name in ((base, "model.safetensors"), (adapter, "adapter_model.safetensors")):
        before = (folder / name).read_bytes()
        said = refused("merge", base, "--lora", adapter, "-o", folder / name)
        assert "also an input" in said
        assert (folder / name).read_bytes() == before


def test_an_input_that_is_named_like_a_temporary_file(tmp_path: Path, gguf: Path) -> None:
    for name in (".z.gguf.partial", ".z.gguf.0123456789abcdef.partial"):
        source = tmp_path / name
        os.link(gguf, source)
        command = [sys.executable, "-m", "loragraft", "quantize", source, tmp_path / "z.gguf", "Q8_0"]
        subprocess.run(command, check=True, capture_output=True)
        assert source.read_bytes() == gguf.read_bytes()
