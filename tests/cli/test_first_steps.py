"""What somebody meets who has an adapter, a base and --help: every refusal names the next command."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from loragraft.cli import app
from paths import data

BASE, ADAPTER = data("llama-kjv"), data("llama-kjv.shakespeare")


def refused(*command: object) -> str:
    done = CliRunner().invoke(app, [str(word) for word in command])
    assert done.exit_code == 1, done.output
    return done.output


def test_a_folder_in_place_of_a_file(tmp_path: Path) -> None:
    said = refused("merge", BASE, "--lora", ADAPTER, "-o", tmp_path)
    assert (
        f"is a folder: expected the name of a file to write; name one in it: -o {tmp_path}/model.gguf" in said
    )


def test_a_file_s_name_for_a_folder(tmp_path: Path) -> None:
    for to, what in (("mlx", "an mlx-lm"), ("peft", "a PEFT")):
        said = refused("convert", ADAPTER, "--base", BASE, "--to", to, "-o", tmp_path / "a.gguf")
        assert f"a.gguf: is a file's name, but {what} adapter is a folder" in said
        assert f"-o {tmp_path}/a, or --to gguf" in said
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").touch()
    said = refused("convert", ADAPTER, "--base", BASE, "--to", "peft", "-o", tmp_path / "a")
    assert (
        f"is there already: expected a new or empty folder; choose another name, or remove it: rm -r {tmp_path}/a"
        in said
    )


def test_models_that_do_not_differ(tmp_path: Path) -> None:
    said = refused("extract", BASE, BASE, "-o", tmp_path / "a", "--rank", 2)
    assert "found 0 other tensors that differ, expected another model; are these the same weights?" in said
    weights = BASE / "model.safetensors"
    assert said.rstrip().endswith(f"Compare the files: sha256sum {weights} {weights}")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("command", "meant"),
    [
        (["merge", BASE, ADAPTER, "-o", "x.gguf"], f"--lora {ADAPTER}?"),
        (["run", BASE, "What say you,"], "--prompt 'What say you,'?"),
        (["tokenize", BASE, "valid.txt"], "--file valid.txt?"),
    ],
)
def test_an_argument_too_many(
    command: list[object], meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("valid.txt").write_text("text")
    done = CliRunner().invoke(app, list(map(str, command)), prog_name="loragraft")
    assert done.exit_code == 2
    assert f"did you mean {meant} See loragraft {command[0]} --help\n" in done.output
    assert done.output.count("\n") == 1


def test_a_folder_of_models_and_adapters(tmp_path: Path) -> None:
    for source, name in ((BASE, "base"), (ADAPTER, "adapter")):
        shutil.copytree(source, tmp_path / name)
    said = refused("inspect", tmp_path)
    assert (
        f"holds several adapters and models: found adapter, base, expected one; name it: {tmp_path}/base"
        in said
    )
