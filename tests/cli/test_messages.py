"""What commands say about the text, the adapters and the machine; and what they say to a program, with --json."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import loragraft as lg
from loragraft.adapters.receipt import DIGESTS, NAMES, RANKS, SCALES, digest_of
from loragraft.cli import app
from loragraft.errors import LoragraftError
from loragraft.formats.gguf.values import Value, ValueType
from loragraft.opening import load_adapter, load_adapters, open_model
from loragraft.units import digits_text, ranges_text
from paths import data

BASE, ADAPTER, TEXT = data("llama-kjv"), data("llama-kjv.shakespeare"), data("shakespeare-valid.txt")


def run(*args: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    assert result.exit_code == code, result.output
    return result.output


def run_json(*args: object) -> Any:
    return json.loads(run(*args, "--json", "--quiet"))


@pytest.mark.parametrize(
    "words",
    [
        ["perplexity", BASE],
        ["imatrix", BASE, "-o", "out.gguf"],
        ["check", BASE],
        # were anything merged before the text is looked at, the missing folder would be the error
        ["compare", "--base", BASE, "--lora", ADAPTER, "--work-dir", "/nowhere"],
    ],
    ids=lambda words: words[0],
)
def test_a_text_that_is_too_short_is_named(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("short.txt").write_text("In the beginning")
    assert run(*words, "--text", "short.txt", "--context", 64, code=1) == (
        "loragraft: error: short.txt: too short to measure on: found 5 tokens, expected 128 or more, two windows of "
        "64; take a longer text or a smaller context\n"
    )


def test_windows_longer_than_the_model_was_trained_for() -> None:
    trained = lg.load(BASE).context_length
    assert trained is not None
    output = run("perplexity", BASE, "-f", TEXT, "--context", 2 * trained, "--windows", 1)
    assert f"windows of {2 * trained:,} tokens are longer than the {trained:,} that the model was" in output
    assert "longer" not in run("perplexity", BASE, "-f", TEXT, "--context", 64, "--windows", 1)


def test_an_adapter_given_twice(tmp_path: Path) -> None:
    note = f"{ADAPTER}: given twice, and added twice\n"
    twice = ["--lora", ADAPTER, "--lora", f"{ADAPTER}=0.5"]
    assert note in run("merge", BASE, *twice, "--dry-run")
    assert note in run("run", BASE, *twice, "-p", "x", "-n", 1)
    assert note not in run("merge", BASE, "--lora", ADAPTER, "--dry-run")


def test_an_adapter_that_was_merged_before(tmp_path: Path) -> None:
    run("merge", BASE, "--lora", f"{ADAPTER}=0.5", "-o", tmp_path / "m.gguf")
    note = (
        f"{ADAPTER}: is in m.gguf already (llama-kjv.shakespeare at 0.5, according to its loragraft.adapters.*), "
        "and is added once more\n"
    )
    assert note in run("merge", tmp_path / "m.gguf", "--lora", ADAPTER, "--dry-run")
    assert note in run("run", tmp_path / "m.gguf", "--lora", ADAPTER, "-p", "x", "-n", 1)
    assert "already" not in run("merge", tmp_path / "m.gguf", "--dry-run")


def test_a_name_of_any_length_is_cut_in_a_note() -> None:
    base = open_model(BASE)
    digest = digest_of(load_adapter(ADAPTER, base).files)
    known = {NAMES: Value.strings(["x" * 101]), SCALES: Value.numbers(ValueType.FLOAT32, [1.0])}
    known |= {RANKS: Value.numbers(ValueType.UINT32, [8]), DIGESTS: Value.strings([digest])}
    marked = replace(base, metadata={**base.metadata, **known})
    [(adapter, _)] = load_adapters([ADAPTER], marked)[1]
    assert f"already ({'x' * 100}... at 1" in adapter.notes[-1]


def test_a_password_in_a_url_is_not_shown() -> None:
    said = str(LoragraftError("https://me:secret@host/m.gguf", "gone", hint="try http://me:secret@host"))
    assert said == "https://***@host/m.gguf: gone; try http://***@host"
    assert str(LoragraftError("hf://org/name@main/a", "gone")) == "hf://org/name@main/a: gone"


@pytest.mark.parametrize("words", [["merge", "x", "-t", "100000"], ["quantize", "x", "Q8_0", "100000"]])
def test_threads_beyond_any_machine_are_refused(words: list[str]) -> None:
    assert "100000 is not in the range 1<=x<=1024" in run(*words, code=2)


def test_run_as_json() -> None:
    facts = run_json("run", BASE, "-p", "What say you,", "-n", 8, "--seed", 1)
    stream = lg.load(BASE).generate("What say you,", max_tokens=8, seed=1)
    assert facts["text"] == "".join(stream)
    assert (facts["tokens"], facts["prompt_tokens"]) == (8, stream.prompt_tokens)
    assert (facts["stopped_by"], facts["seed"]) == ("length", 1)
    assert facts["tokens_per_second"]["text"] == pytest.approx(7 / facts["seconds"]["text"])


def test_files_as_json(tmp_path: Path) -> None:
    model, whole = tmp_path / "model.gguf", tmp_path / "whole.gguf"
    run("convert", BASE, "-o", model)
    files = run_json("split", model, tmp_path / "part", "--split-max-tensors", 20)["files"]
    assert [file["tensors"] for file in files] == [20, 19]
    assert [file["bytes"] for file in files] == [Path(file["path"]).stat().st_size for file in files]
    joined = run_json("join", files[0]["path"], whole)
    assert joined == {"path": str(whole), "bytes": whole.stat().st_size}


def test_imatrix_as_json(tmp_path: Path) -> None:
    out = tmp_path / "imatrix.gguf"
    facts = run_json("imatrix", BASE, "-f", TEXT, "-o", out, "--context", 16, "--windows", 2)
    assert facts == {"path": str(out), "weights": 28, "windows": 2, "context": 16}


def test_reports_print_as_a_line(tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    report = lg.convert(BASE, out, type="Q8_0")
    assert str(report) == f"{out}: Q8_0, 39 tensors, 4.5 MB, 8.51 bits per weight"
    assert repr(lg.inspect(out)) == f"<FileReport {out}: GGUF model, 39 tensors, 4.5 MB>"
    assert repr(lg.check(out)) == f"<Conformance {out}: 30 linears, llama.cpp right on 30>"


def test_blocks_that_are_alike_share_a_line() -> None:
    model = data("starcoder2-bias-nvfp4")
    lines = [line.split()[0] for line in run("check", model).splitlines()[1:9]]
    names = [
        f"blk.0-2.{name}" for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_down")
    ]
    assert lines == ["token_embd", *names, "output"]
    every = [line.split()[0] for line in run("check", model, "-v").splitlines()[1:21]]
    assert every[:2] + every[18:] == ["token_embd", "blk.0.attn_q", "blk.2.ffn_down", "output"]


def test_numbers_as_people_read_them() -> None:
    assert ranges_text([3, 0, 1, 5]) == "0-1,3,5"
    assert [digits_text(number, 2) for number in (421.3, 0.0083, 1.5e9)] == ["420", "0.0083", "1500000000"]


def test_a_mistyped_command() -> None:
    said = "loragraft: error: no such command 'mrege'. Did you mean 'merge'? See loragraft --help\n"
    assert run("mrege", code=2) == said
