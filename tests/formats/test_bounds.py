"""Time and memory linear in a file's size, whatever it holds: at most 4 times its bytes plus 100 MB."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

import hostile_models as hostile
import loragraft as lg
from gguf_files import write_gguf
from loragraft.cli import app
from loragraft.formats.gguf.values import Value, ValueType

_READ = """
import resource, sys, time
from pathlib import Path
from loragraft.errors import CheckpointError, LoragraftError
from loragraft.formats.gguf.reader import GGUFFile
from loragraft.formats.safetensors import SafetensorsFile
from loragraft.formats.jsonfile import load_json
from loragraft.formats.imatrix import Imatrix
def peak():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1]) * 1024
path, before, start = Path(sys.argv[2]), peak(), time.process_time()
try:
    kept = eval(sys.argv[1])(path)
    print("read")
except LoragraftError as error:
    print(error)
print(peak() - before, time.process_time() - start)
"""


def measured(path: Path, read: str) -> tuple[str, int, float]:
    """What reading said, the bytes of memory that it took, and the seconds."""
    command = [sys.executable, "-c", _READ, read, path]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    says, numbers = done.stdout.splitlines()
    taken, seconds = numbers.split()
    return says, int(taken), float(seconds)


def gguf_header(entries: int, body: bytes, tensors: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, entries) + body


def array(kind: int, count: int, data: bytes) -> bytes:
    return struct.pack("<Q", 1) + b"k" + struct.pack("<IIQ", 9, kind, count) + data


def tensor(index: int) -> bytes:
    name = f"{index:x}".encode()
    return struct.pack("<Q", len(name)) + name + struct.pack("<IQIQ", 1, 32, 0, 128 * index)


def safetensors(header: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header


ENTRY = b'{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
GGUF, SAFETENSORS, JSON = "GGUFFile.open", "SafetensorsFile.open", "lambda p: load_json(p, CheckpointError)"
#: Bytes, the reader, and a part of what it says.
FILES: dict[str, tuple[Callable[[], bytes], str, str]] = {
    "tiny strings": (
        lambda: gguf_header(1, array(8, 5_000_000, (struct.pack("<Q", 1) + b"x") * 5_000_000)),
        GGUF,
        "too many strings",
    ),
    "some tiny strings": (
        lambda: gguf_header(1, array(8, 2_000_000, (struct.pack("<Q", 1) + b"x") * 2_000_000)),
        GGUF,
        "read",
    ),
    "arrays in arrays": (
        lambda: gguf_header(1, array(9, 1_000_000, struct.pack("<IQ", 4, 0) * 1_000_000)),
        GGUF,
        "too many arrays in arrays",
    ),
    "small numbers": (lambda: gguf_header(1, array(0, 1 << 24, bytes(1 << 24))), GGUF, "too many elements"),
    "entries": (
        lambda: gguf_header(
            100_000, b"".join(struct.pack("<Q8sIB", 8, b"%08d" % i, 0, 0) for i in range(100_000))
        ),
        GGUF,
        "too many metadata entries",
    ),
    "a long text": (
        lambda: gguf_header(
            1, struct.pack("<Q1sIQ", 1, b"k", 8, 1 << 25) + "\U0001f600".encode() * (1 << 23)
        ),
        GGUF,
        "too many bytes in",
    ),
    "tensors": (
        lambda: gguf_header(0, b"".join(map(tensor, range(200_000))), 200_000),
        GGUF,
        "too many tensors",
    ),
    "some tensors": (
        lambda: gguf_header(0, b"".join(map(tensor, range(100_000))), 100_000).ljust(100_000 * 170, b"\0"),
        GGUF,
        "read",
    ),
    "a key twice": (
        lambda: safetensors(b"{" + b",".join(b'"%d":%s' % (i % 30_000, ENTRY) for i in range(60_000)) + b"}"),
        SAFETENSORS,
        "holds a key twice",
    ),
    "lists": (lambda: b'{"a":[' + b"[]," * 10_000_000 + b"[]]}", JSON, "too many small values"),
    "objects": (lambda: b'{"a":[' + b"{}," * 2_000_000 + b"{}]}", JSON, "too many small values"),
    "short texts": (lambda: b'{"a":[' + b'"a",' * 4_000_000 + b"1]}", JSON, "too many small values"),
    "some short texts": (lambda: b'{"a":[' + b'"ab",' * 1_500_000 + b"1]}", JSON, "read"),
    "brackets": (lambda: b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", JSON, "nested too deeply"),
    "a long number": (lambda: b'{"a":' + b"1" * 1_000_000 + b"}", JSON, "is not JSON"),
    "entries of an importance matrix": (
        lambda: (
            struct.pack("<i", 300_000)
            + b"".join(struct.pack("<i6siif", 6, b"%06d" % i, 1, 1, 1.0) for i in range(300_000))
        ),
        "Imatrix.load",
        "too many entries",
    ),
}


@pytest.mark.unsanitized
@pytest.mark.parametrize("case", FILES)
def test_a_header_takes_no_more_than_its_size(tmp_path: Path, case: str) -> None:
    make, read, says = FILES[case]
    path = tmp_path / "file"
    path.write_bytes(make())
    said, taken, seconds = measured(path, read)
    assert says in said
    assert len(said) < 700
    assert taken < 4 * path.stat().st_size + 100_000_000
    assert seconds < 4 + path.stat().st_size / 2_000_000


@pytest.mark.unsanitized
@pytest.mark.parametrize("what", ["vocab_size", "token id"])
def test_no_vocabulary_is_made_up(tmp_path: Path, what: str) -> None:
    jsons = hostile.checkpoint_jsons()
    if what == "vocab_size":
        jsons["config.json"]["vocab_size"] = (1 << 24) - 1
    else:
        jsons["tokenizer.json"]["model"]["vocab"]["zzz"] = (1 << 24) - 1
    base, _ = hostile.checkpoint(tmp_path, jsons)
    script = f"lambda p: __import__('loragraft').convert(p, {str(tmp_path / 'out.gguf')!r}, threads=1)"
    said, taken, seconds = measured(base, script)
    assert (
        "vocab_size differs from the number" in said
        if what == "vocab_size"
        else "more tokens than the model" in said
    )
    assert taken < 100_000_000
    assert seconds < 5


def test_a_long_token_is_refused(tmp_path: Path) -> None:
    """All ways to make it of two others are as many as the square of its length in bytes."""
    small = hostile.model()
    tokens = [*hostile.TOKENS[:-1], "a" * 200_000]
    small.metadata |= {
        "tokenizer.ggml.model": Value.string("llama"),
        "tokenizer.ggml.tokens": Value.strings(tokens),
        "tokenizer.ggml.scores": Value.numbers(ValueType.FLOAT32, [0.0] * len(tokens)),
    }
    path = hostile.gguf(tmp_path / "long.gguf", small)
    with pytest.raises(lg.LoragraftError, match="a token is too long: found 200000 characters"):
        lg.load(path)


def test_many_tensors_are_shown_in_seconds(tmp_path: Path) -> None:
    import numpy as np

    arrays = {f"blk.{layer}.ffn_gate.weight": np.zeros((1, 32), np.float32) for layer in range(20_000)}
    path = write_gguf(tmp_path / "many.gguf", {"general.architecture": Value.string("llama")}, arrays)
    start = time.process_time()
    shown = CliRunner().invoke(app, ["inspect", str(path)])
    assert shown.exit_code == 0
    assert time.process_time() - start < 8
    lines = shown.stdout.splitlines()
    assert lines[4].split() == ["blk.0.ffn_gate.weight", "32", "F32", "128", "B"]
    assert lines[20_003].split() == ["blk.19999.ffn_gate.weight", "32", "F32", "128", "B"]


def test_steps_in_steps_of_a_tokenizer(tmp_path: Path) -> None:
    jsons = hostile.checkpoint_jsons()
    step = jsons["tokenizer.json"]["pre_tokenizer"]
    for _ in range(180):
        step = {"type": "Sequence", "pretokenizers": [step]}
    jsons["tokenizer.json"]["pre_tokenizer"] = step
    base, _ = hostile.checkpoint(tmp_path, jsons)
    assert json.loads((base / "tokenizer.json").read_text())
    lg.convert(base, tmp_path / "out.gguf", threads=1)
