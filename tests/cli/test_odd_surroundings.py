"""Closed streams, other locales, and names that a terminal would obey."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import hostile_models as hostile
from loragraft.cli import app, console
from loragraft.formats.gguf.values import Value


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hostile.gguf(tmp_path_factory.mktemp("model") / "model.gguf", hostile.model())


def shell(line: str, *words: object, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """`line`, with `words` as $1 and so on."""
    return subprocess.run(
        [
            "sh",
            "-c",
            line.replace("loragraft", f"{sys.executable} -m loragraft"),
            "sh",
            *map(os.fsencode, map(str, words)),
        ],
        capture_output=True,
        timeout=120,
        env={**os.environ, **environment},
    )


def test_closed_streams(tmp_path: Path, gguf: Path) -> None:
    wanted = tmp_path / "wanted.gguf"
    shell('loragraft quantize "$1" "$2" Q8_0', gguf, wanted)
    done = shell('loragraft quantize "$1" "$2" Q8_0 <&- >&- 2>&-', gguf, tmp_path / "out.gguf")
    assert done.returncode == 0
    assert (tmp_path / "out.gguf").read_bytes() == wanted.read_bytes()
    done = shell('loragraft inspect "$1" >&-', gguf)
    assert (done.returncode, done.stderr) == (1, b"loragraft: error: a standard stream is closed\n")
    done = shell('loragraft tokenize "$1" -f - <&-', gguf)
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1
    done = shell("loragraft inspect /nowhere 2>&-")
    assert (done.returncode, done.stdout) == (1, b"")
    done = shell('loragraft inspect "$1" >/dev/full', gguf)
    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)


def test_a_prompt_is_utf8_whatever_the_locale(gguf: Path) -> None:
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    wanted = shell('loragraft tokenize "$1" -p "$2" --json', gguf, "é")
    done = shell('loragraft tokenize "$1" -p "$2" --json', gguf, "é", **plain)
    assert json.loads(done.stdout)["ids"] == json.loads(wanted.stdout)["ids"]
    done = shell('loragraft tokenize "$1" -p "$2"', gguf, "\udcff")
    assert (done.returncode, done.stderr) == (
        1,
        b"loragraft: error: --prompt: not UTF-8 text: found byte 0xff at 0\n",
    )


ODD = ["a\nb.gguf", "\x1b[31mred.gguf", "\udcff\udcfe.gguf", "\x9bc1.gguf", "\u202eright.gguf"]


@pytest.mark.parametrize("name", ODD)
def test_a_name_is_shown_in_one_line_and_not_obeyed(tmp_path: Path, gguf: Path, name: str) -> None:
    source, output = tmp_path / name, tmp_path / f"out-{name}"
    shutil.copy(gguf, source)
    runs = [
        shell('loragraft inspect "$1"', source, PYTHONUTF8="1"),
        shell('loragraft quantize "$1" "$2" Q8_0', source, output, PYTHONUTF8="1"),
        shell('loragraft split "$1" "$2"', source, output, PYTHONUTF8="1"),
        shell('loragraft inspect "$1"', f"{source}x", PYTHONUTF8="1"),
    ]
    assert [done.returncode for done in runs] == [0, 0, 0, 1], runs
    for done in runs:
        shown = (done.stdout + done.stderr).decode()
        assert not any(line.startswith("b.gguf") for line in shown.split("\n"))
        assert not set(shown) & set("\x1b\x9b\u202e")


def test_what_a_file_says_is_not_obeyed(tmp_path: Path) -> None:
    small = hostile.model()
    odd = "blk.0.\x1b[2J\nfake line.weight"
    small.arrays[odd] = small.arrays["blk.0.attn_q.weight"]
    small.metadata["general.name"] = Value.string("\x1b]0;title\x07\x9b\u202e")
    path = hostile.gguf(tmp_path / "model.gguf", small)
    for words in (
        ["inspect", path],
        ["inspect", path, "--json"],
        ["quantize", path, "x", "Q8_0", "--dry-run"],
    ):
        done = CliRunner().invoke(app, list(map(str, words)))
        assert done.exit_code == 0, done.output
        assert not set(done.output) & set("\x1b\x07\x9b\u202e")
        assert not any(line.startswith("fake line") for line in done.output.split("\n"))
        if "--json" in words:
            assert (
                json.loads(done.stdout)["metadata"]["general.name"]["value"] == "\x1b]0;title\x07\x9b\u202e"
            )


def test_safe_text_stays_json() -> None:
    value = "".join(map(chr, [*range(0x300), 0x2028, 0x202E, 0xDCFF]))
    assert json.loads(console.safe(json.dumps(value, ensure_ascii=False))) == value
    assert console.safe("Ünïcödé 中文 \U0001f600\t\n") == "Ünïcödé 中文 \U0001f600\t\n"
