"""Files that are none: devices, pipes and endless texts in place of what a command reads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import hostile_models as hostile
from loragraft.formats.textfile import MAX_TEXT


def loragraft(*args: object, **more: object) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "loragraft", *map(str, args)]
    return subprocess.run(command, capture_output=True, timeout=120, **more)  # type: ignore[call-overload]


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hostile.gguf(tmp_path_factory.mktemp("model") / "model.gguf", hostile.model())


@pytest.fixture
def odd(tmp_path: Path) -> dict[str, Path]:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").touch()
    os.truncate(tmp_path / "large", MAX_TEXT + 1)
    (tmp_path / "link").symlink_to("/dev/zero")
    return {"device": Path("/dev/zero"), **{name: tmp_path / name for name in ("pipe", "large", "link")}}


COMMANDS = {
    "tokenize": ["tokenize", "{model}", "-f", "{file}"],
    "perplexity": ["perplexity", "{model}", "-f", "{file}", "--max-chars", "100"],
    "rules": ["quantize", "{model}", "{out}", "Q8_0", "--tensor-type-file", "{file}"],
    "imatrix": ["quantize", "{model}", "{out}", "Q8_0", "--imatrix", "{file}"],
}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("tokenize", kind) for kind in ("device", "pipe", "large", "link")),
        *(("perplexity", "device"), ("rules", "pipe"), ("rules", "large"), ("imatrix", "pipe")),
    ],
)
def test_no_file_to_read_from(tmp_path: Path, gguf: Path, odd: dict[str, Path], name: str, kind: str) -> None:
    words = [word.format(model=gguf, file=odd[kind], out=tmp_path / "out") for word in COMMANDS[name]]
    done = loragraft(*words)
    assert done.returncode == 1, done.stderr
    assert done.stderr.count(b"\n") == 1
    assert os.fsencode(odd[kind]) in done.stderr
    assert (b"the file is too large" if kind == "large" else b"is not a regular file") in done.stderr
    assert not (tmp_path / "out").exists()


def test_an_endless_stdin(gguf: Path) -> None:
    with open("/dev/zero", "rb") as endless:
        done = loragraft("tokenize", gguf, "-f", "-", stdin=endless)
    assert done.returncode == 1
    assert b"stdin: the text is too large" in done.stderr


def test_a_text_from_a_pipe_on_stdin(gguf: Path) -> None:
    done = loragraft("tokenize", gguf, "-f", "-", "--json", input=b"the")
    assert done.returncode == 0, done.stderr
    assert b'"pieces"' in done.stdout
