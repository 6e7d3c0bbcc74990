"""--resize-vocab: a row for every token, as resize_token_embeddings makes them, but for chance."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import loragraft as lg
from intake_table import shows
from loragraft.cli import app
from loragraft.formats.gguf.reader import GGUFFile
from loragraft.formats.views import float_rows, widened
from loragraft.huggingface.intake import Intake
from loragraft.opening import open_model
from loragraft.quants.types import F32
from paths import data
from peft_golden import adapter_folder, base_folder, write_tokenizer

BASE = data("llama-kjv")
RESIZE = Intake(resize_vocab=True)


def values(path: Path, name: str) -> np.ndarray:
    source = widened(open_model(path).tensors[name])
    return float_rows(source.rows(0, source.n_rows), F32)


def run(*args: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    assert result.exit_code == code, result.output
    return result.output


@shows(
    "15",
    "a base with added tokens, tied and not",
    "with `--resize-vocab` new rows are the mean of the others",
)
def test_a_base(tmp_path: Path) -> None:
    folder, out = tmp_path / "m", tmp_path / "o.gguf"
    shutil.copytree(BASE, folder)
    shutil.copy(data("intake/15-tokenizer-larger-than-embedding") / "tokenizer.json", folder)
    assert "--resize-vocab" in run("convert", folder, "-o", out, code=1)
    output = run("convert", folder, "-o", out, "--resize-vocab")
    assert "1 tokens had no row in the embedding: each gets the mean of the others" in output
    metadata = GGUFFile.open(out).metadata
    assert metadata["tokenizer.ggml.tokens"].data[2048:] == ["[PAD]"]
    assert metadata["llama.vocab_size"].data == 2049
    for name in ("token_embd.weight", "output.weight"):
        old, new = values(BASE, name), values(out, name)
        np.testing.assert_array_equal(new[:2048], old)
        np.testing.assert_allclose(new[2048], old.mean(axis=0, dtype=np.float64), atol=2e-4, rtol=1e-3)
    ids = [5, 2048, 9]
    assert lg.load(out).logits(ids).shape == (3, 2049)
    same = lg.load(folder, intake=RESIZE)
    np.testing.assert_array_equal(same.logits(ids), lg.load(out).logits(ids))
    run("convert", BASE, "-o", tmp_path / "same.gguf", "--resize-vocab")
    lg.convert(BASE, tmp_path / "plain.gguf")
    assert (tmp_path / "same.gguf").read_bytes() == (tmp_path / "plain.gguf").read_bytes()


@pytest.mark.parametrize(
    ("case", "base_type"), [("llama+mica", None), ("qwen2+dora", None), ("llama+mica", "Q8_0")]
)
@shows("15", "added tokens beside an adapter, on folders and GGUFs", "the same")
def test_an_adapters_tokenizer(case: str, base_type: Any, tmp_path: Path) -> None:
    """Tokens were added beside the adapter, and their rows not saved: of tied and untied models, folders and GGUFs."""
    base, adapter = base_folder(case, tmp_path / "base"), adapter_folder(case, tmp_path / "adapter")
    write_tokenizer(adapter, 44)
    if base_type:
        lg.merge(base, [], tmp_path / "base.gguf", type=base_type)
        base = tmp_path / "base.gguf"
    plain, out = tmp_path / "plain.gguf", tmp_path / "o.gguf"
    lg.merge(base, adapter, plain, type="F32")
    report = lg.merge(base, adapter, out, type="F32", intake=RESIZE)
    assert any("tokens had no row in the embedding" in note for note in report.notes)
    assert len(GGUFFile.open(out).metadata["tokenizer.ggml.tokens"].data) == 44
    before = values(base, "token_embd.weight")
    mean = before.mean(axis=0, dtype=np.float64)
    for name in ("token_embd.weight", "output.weight"):
        if name in open_model(plain).tensors:
            old, new = values(plain, name), values(out, name)
            np.testing.assert_array_equal(new[: len(old)], old)
            assert len(new) == 44
    np.testing.assert_allclose(values(out, "token_embd.weight")[-1], mean, atol=1e-2)
    ids = list(range(3, 30))
    found, expected = lg.load(base, adapter, intake=RESIZE), lg.load(base, adapter)
    np.testing.assert_allclose(found.logits(ids)[:, : len(before)], expected.logits(ids), atol=1e-5)
    config = json.loads((adapter / "tokenizer_config.json").read_text())
    assert config["eos_token"] == "B"
