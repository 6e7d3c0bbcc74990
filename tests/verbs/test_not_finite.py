"""One NaN in one weight: every backend refuses, whatever its type, and no command prints a number made of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import loragraft as lg
from command_line import loragraft
from loragraft.errors import LoragraftError
from loragraft.formats.gguf.model import open_gguf
from paths import data
from served import http, serving

TYPES = ["Q8_0", "Q4_0", "Q4_K_M", "Q6_K", "F16", "BF16"]
WHERE = ["attn_norm", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_down"]
BACKENDS: list[lg.load.BackendName] = ["native", "reference"]
_TEXT = "In the beginning God created the heaven and the earth. " * 12

#: Where in a block its scale is, and how NaN is written there.
_SCALES = {
    "F32": (0, b"\0\0\xc0\x7f"),
    "F16": (0, b"\0\x7e"),
    "BF16": (0, b"\xc0\x7f"),
    "Q8_0": (0, b"\0\x7e"),
    "Q4_0": (0, b"\0\x7e"),
    "Q4_K": (0, b"\0\x7e"),
    "Q6_K": (208, b"\0\x7e"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for type_ in TYPES:
        lg.merge(data("llama-kjv"), [], folder / f"{type_}.gguf", type=type_)
    return folder


def poisoned(folder: Path, type_: str, where: str, layer: int = 1) -> Path:
    """The model of this type with one NaN."""
    path = folder / f"{type_}.{where}.{layer}.gguf"
    shutil.copy(folder / f"{type_}.gguf", path)
    tensor = open_gguf(path).tensors[f"blk.{layer}.{where}.weight"]
    at, nan = _SCALES[tensor.type.name]
    with path.open("r+b") as file:
        file.seek(tensor.offset + at)  # type: ignore[attr-defined]
        file.write(nan)
    return path


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("type_", TYPES)
def test_one_nan(folder: Path, type_: str, where: str, backend: lg.load.BackendName) -> None:
    path = poisoned(folder, type_, where)
    model = lg.load(path, backend=backend, threads=1)
    with np.errstate(all="ignore"):
        for use in (
            lambda: model.logits([1, 2, 3, 4]),
            lambda: list(model.generate("In the", max_tokens=3, temperature=0)),
            lambda: model.perplexity(_TEXT, context=16, windows=2),
        ):
            with pytest.raises(LoragraftError, match="not finite") as refused:
                use()
            assert str(path) in str(refused.value)


@pytest.mark.parametrize("type_", TYPES)
def test_one_nan_in_the_last_layer_and_a_prompt_of_a_token(folder: Path, type_: str) -> None:
    path = poisoned(folder, type_, "ffn_down", 3)
    for backend in BACKENDS:
        with np.errstate(all="ignore"), pytest.raises(LoragraftError, match="not finite"):
            lg.load(path, backend=backend, threads=1).logits([1])


@pytest.mark.parametrize("where", ["attn_norm", "attn_v", "ffn_up"])
@pytest.mark.parametrize("type_", ["Q8_0", "Q4_0", "Q4_K_M", "Q6_K"])
def test_commands(folder: Path, type_: str, where: str) -> None:
    path = poisoned(folder, type_, where)
    text = folder / "text"
    text.write_text(_TEXT)
    for words in (
        ["perplexity", path, "-f", text, "--context", "16", "--windows", "2"],
        ["run", path, "-p", "In the", "-n", "3"],
        ["check", path, "--lora", data("llama-kjv.shakespeare")],
        ["imatrix", path, "-f", text, "-o", folder / "out.imatrix", "--context", "16", "--windows", "2"],
    ):
        done = loragraft(*words)
        assert done.returncode == 1, (words[0], done.stdout)
        assert "not finite" in done.stderr or "NaN" in done.stderr, (words[0], done.stderr)
        assert str(path) in done.stderr
        assert not any(character.isdigit() for character in done.stdout), (words[0], done.stdout)
    assert not (folder / "out.imatrix").exists()


@pytest.mark.parametrize("type_", ["Q8_0", "Q4_K_M"])
def test_a_server(folder: Path, type_: str) -> None:
    """Each request is refused, and the server goes on."""
    path = poisoned(folder, type_, "attn_norm")
    with serving(path, "--alias", "m") as server:
        for kind in ("completions", "completions", "embeddings"):
            body = {"model": "m", "prompt": "In the", "max_tokens": 3}
            if kind == "embeddings":
                body = {"model": "m", "input": "In the"}
            answer = http.post(f"{server.url}/v1/{kind}", content=json.dumps(body).encode())
            assert answer.status_code in (400, 500), answer.text
            assert "not finite" in answer.json()["error"]["message"]
        assert http.get(f"{server.url}/health").json()["running"] == 0
