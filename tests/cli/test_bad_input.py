"""Every kind of bad input, through the command line: one line that names the file, what was found and what was
expected; exit code 1; the target as it was; never a traceback."""

from __future__ import annotations

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from command_line import loragraft
from killed import interrupted_after
from paths import data

BASE, ADAPTER = data("llama-kjv"), data("llama-kjv.shakespeare")
OLD = b"what was there before"


def refused(folder: Path, *args: object, says: tuple[str, ...]) -> str:
    """Runs `args`, whose target is folder/out.gguf, and checks the promises above."""
    target = folder / "out.gguf"
    target.write_bytes(OLD)
    before = sorted(os.listdir(folder))
    done = loragraft(*args)
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("loragraft: error: ")
    for part in says:
        assert part in done.stderr
    assert "Traceback" not in done.stderr
    assert target.read_bytes() == OLD
    assert sorted(os.listdir(folder)) == before
    return done.stderr


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A whole model as bytes, to be spoilt."""
    path = tmp_path_factory.mktemp("model") / "base.gguf"
    done = loragraft("merge", BASE, "-o", path, "--type", "F16")
    assert done.returncode == 0, done.stderr
    return path.read_bytes()


# ---- GGUF files that lie ----


def u32(number: int) -> bytes:
    return struct.pack("<I", number)


def u64(number: int) -> bytes:
    return struct.pack("<Q", number)


def patched(offset: int, new: bytes) -> Callable[[bytes], bytes]:
    return lambda whole: whole[:offset] + new + whole[offset + len(new) :]


def tensor_record(whole: bytes, name: bytes) -> int:
    """Where the header record of a tensor starts, behind its name."""
    return whole.index(u64(len(name)) + name) + 8 + len(name)


def with_type(whole: bytes, number: int) -> bytes:
    at = tensor_record(whole, b"token_embd.weight") + 4 + 2 * 8
    return whole[:at] + u32(number) + whole[at + 4 :]


def with_offset(whole: bytes, offset: int) -> bytes:
    at = tensor_record(whole, b"token_embd.weight") + 4 + 2 * 8 + 4
    return whole[:at] + u64(offset) + whole[at + 8 :]


def with_columns(whole: bytes, columns: int) -> bytes:
    at = tensor_record(whole, b"token_embd.weight") + 4
    return whole[:at] + u64(columns) + whole[at + 8 :]


SPOILT: dict[str, tuple[Callable[[bytes], bytes], tuple[str, ...]]] = {
    "empty": (lambda whole: b"", ()),
    "not-gguf": (patched(0, b"ABCD"), ("found", "expected")),
    "version-9": (patched(4, u32(9)), ("version", "found 9", "expected")),
    "2^60-tensors": (patched(8, u64(1 << 60)), ("found", "expected")),
    "2^60-keys": (patched(16, u64(1 << 60)), ("found", "expected")),
    "2^60-long-key": (patched(24, u64(1 << 60)), ()),
    "cut-in-the-header": (lambda whole: whole[:5000], ()),
    "cut-in-the-data": (lambda whole: whole[: len(whole) // 2], ("found", "expected")),
    "unknown-type": (lambda whole: with_type(whole, 77), ("token_embd.weight", "77")),
    "offset-past-the-end": (lambda whole: with_offset(whole, 1 << 50), ("token_embd.weight",)),
    "offset-unaligned": (lambda whole: with_offset(whole, 7), ("token_embd.weight",)),
    "2^62-columns": (lambda whole: with_columns(whole, 1 << 62), ("token_embd.weight",)),
    "other-columns": (lambda whole: with_columns(whole, 512), ()),
    "duplicate-name": (
        lambda whole: whole.replace(b"blk.1.attn_k.weight", b"blk.0.attn_k.weight"),
        ("blk.0.attn_k.weight",),
    ),
}


@pytest.mark.parametrize("case", SPOILT)
def test_spoilt_gguf(tmp_path: Path, gguf: bytes, case: str) -> None:
    spoil, says = SPOILT[case]
    path = tmp_path / "spoilt.gguf"
    path.write_bytes(spoil(gguf))
    refused(tmp_path, "quantize", path, tmp_path / "out.gguf", "Q4_K_M", says=("spoilt.gguf", *says))


@pytest.mark.parametrize(
    "command", [["inspect"], ["run", "-p", "x", "-n", "1"], ["tokenize", "-p", "x"]], ids=str
)
def test_spoilt_gguf_for_other_commands(tmp_path: Path, gguf: bytes, command: list[str]) -> None:
    path = tmp_path / "spoilt.gguf"
    path.write_bytes(gguf[: len(gguf) // 2])
    refused(tmp_path, *command, path, says=("spoilt.gguf", "found", "expected"))


def test_in_a_process_of_its_own(tmp_path: Path, gguf: bytes) -> None:
    """As a shell has it; the others run within this process."""
    path, target = tmp_path / "spoilt.gguf", tmp_path / "out.gguf"
    path.write_bytes(gguf[: len(gguf) // 2])
    target.write_bytes(OLD)
    command = [sys.executable, "-m", "loragraft", "quantize", path, target, "Q4_K_M"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == refused(
        tmp_path, "quantize", path, target, "Q4_K_M", says=("spoilt.gguf", "found", "expected")
    )
    usage = subprocess.run(command[:5], capture_output=True, text=True, timeout=120)
    assert (usage.returncode, usage.stderr) == (2, loragraft("quantize", path).stderr)


def test_missing_file(tmp_path: Path) -> None:
    for args in (
        ["merge", tmp_path / "no.gguf", "-o", tmp_path / "out.gguf"],
        ["run", tmp_path / "no.gguf", "-p", "x"],
    ):
        refused(tmp_path, *args, says=("no.gguf: no such file",))


# ---- checkpoints and adapters ----


def copied(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    for path in target.iterdir():
        path.chmod(0o644)
    return target


def safetensors(header: bytes, size: int = 0, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + bytes(size)


BAD_HEADERS = {
    "2^60-header": safetensors(b"{}", length=1 << 60),
    "no-json": safetensors(b"hello"),
    "no-object": safetensors(b"[1]"),
    "cut": safetensors(b'{"x":{"dtype":"F16","shape":[4],"data_offsets":[0,8]}}', 4),
    "size-and-shape-differ": safetensors(b'{"x":{"dtype":"F16","shape":[5],"data_offsets":[0,8]}}', 8),
    "negative-shape": safetensors(b'{"x":{"dtype":"F16","shape":[-4],"data_offsets":[0,8]}}', 8),
    "unknown-dtype": safetensors(b'{"x":{"dtype":"Q9","shape":[4],"data_offsets":[0,8]}}', 8),
    "hole": safetensors(b'{"x":{"dtype":"F16","shape":[4],"data_offsets":[8,16]}}', 16),
    "deep": safetensors(b"[" * 100_000),
    "too-short": b"\0\0",
}


@pytest.mark.parametrize("case", BAD_HEADERS)
def test_bad_safetensors(tmp_path: Path, case: str) -> None:
    base = copied(BASE, tmp_path / "base")
    (base / "model.safetensors").write_bytes(BAD_HEADERS[case])
    refused(tmp_path, "merge", base, "-o", tmp_path / "out.gguf", says=("model.safetensors",))


def test_truncated_safetensors(tmp_path: Path) -> None:
    base = copied(BASE, tmp_path / "base")
    os.truncate(base / "model.safetensors", 5_000_000)
    refused(
        tmp_path, "merge", base, "-o", tmp_path / "out.gguf", says=("model.safetensors", "found", "expected")
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", ("config.json",)),
        ("[]", ("config.json",)),
        ('{"architectures": ["FooForCausalLM"], "model_type": "foo"}', ("foo",)),
    ],
)
def test_bad_config(tmp_path: Path, text: str, says: tuple[str, ...]) -> None:
    base = copied(BASE, tmp_path / "base")
    (base / "config.json").write_text(text)
    refused(tmp_path, "merge", base, "-o", tmp_path / "out.gguf", says=says)


def test_a_config_that_does_not_fit_the_weights(tmp_path: Path) -> None:
    base = copied(BASE, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 5}))
    refused(tmp_path, "run", base, "-p", "x", says=(str(base), "blk.4"))
    refused(tmp_path, "merge", base, "-o", tmp_path / "out.gguf", says=(str(base), "blk.4"))


def test_adapter_for_another_model(tmp_path: Path) -> None:
    other = data("starcoder2-bias.pattern")
    refused(tmp_path, "merge", BASE, "--lora", other, "-o", tmp_path / "out.gguf", says=(str(other),))
    refused(tmp_path, "run", BASE, "--lora", other, "-p", "x", says=(str(other),))


def test_gguf_adapter_for_another_architecture(tmp_path: Path) -> None:
    base, adapter = data("gguf/starcoder2-bias-f16.gguf"), data("gguf/llama-kjv.shakespeare-lora.gguf")
    says = (str(adapter), "llama", "starcoder2")
    refused(tmp_path, "merge", base, "--lora", adapter, "-o", tmp_path / "out.gguf", says=says)


def test_adapter_with_unknown_tensors(tmp_path: Path) -> None:
    adapter = copied(ADAPTER, tmp_path / "adapter")
    file = adapter / "adapter_model.safetensors"
    file.write_bytes(
        file.read_bytes().replace(b"layers.3.mlp.up_proj.lora_A", b"layers.3.mlp.op_proj.lora_A")
    )
    refused(tmp_path, "merge", BASE, "--lora", adapter, "-o", tmp_path / "out.gguf", says=("op_proj",))


def test_adapter_with_what_is_not_honoured(tmp_path: Path) -> None:
    adapter = copied(ADAPTER, tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "layer_replication": [[0, 2]]}))
    refused(
        tmp_path,
        "merge",
        BASE,
        "--lora",
        adapter,
        "-o",
        tmp_path / "out.gguf",
        says=("layer_replication", "merge_and_unload"),
    )


def test_base_and_adapter_mixed_up(tmp_path: Path) -> None:
    refused(tmp_path, "merge", ADAPTER, "--lora", BASE, "-o", tmp_path / "out.gguf", says=(str(ADAPTER),))
    refused(tmp_path, "merge", BASE, "--lora", BASE, "-o", tmp_path / "out.gguf", says=(str(BASE),))


def test_weights_that_are_not_numbers(tmp_path: Path) -> None:
    base = copied(BASE, tmp_path / "base")
    file = base / "model.safetensors"
    whole = bytearray(file.read_bytes())
    whole[-2:] = np.float16("nan").tobytes()
    file.write_bytes(whole)
    says = ("weight", "row", "column")
    refused(tmp_path, "merge", base, "-o", tmp_path / "out.gguf", "--type", "Q4_K_M", says=says)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    says = ("empty: is not a Hugging Face model", "no config.json")
    refused(tmp_path, "merge", tmp_path / "empty", "-o", tmp_path / "out.gguf", says=says)


# ---- targets ----


def test_output_is_an_input(tmp_path: Path, gguf: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf)
    link = tmp_path / "link.gguf"
    link.symlink_to(path)
    for target in (path, link):
        refused(tmp_path, "quantize", path, target, "Q8_0", says=("input",))
        refused(tmp_path, "merge", path, "-o", target, says=("input",))
    assert path.read_bytes() == gguf


def test_importance_matrix_onto_its_model(tmp_path: Path, gguf: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf)
    text = data("shakespeare-valid.txt")
    refused(tmp_path, "imatrix", path, "-f", text, "-o", path, says=("input",))
    refused(
        tmp_path, "imatrix", path, "-f", text, "-o", tmp_path / "no" / "x", says=("folder does not exist",)
    )
    assert path.read_bytes() == gguf


def test_read_only_target(tmp_path: Path) -> None:
    target = tmp_path / "kept.gguf"
    target.write_bytes(OLD)
    target.chmod(0o444)
    refused(tmp_path, "merge", BASE, "-o", target, says=("kept.gguf", "read-only"))
    assert target.read_bytes() == OLD
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o555)
    refused(tmp_path, "merge", BASE, "-o", folder / "new.gguf", says=("folder", "read-only"))


def test_target_in_no_folder(tmp_path: Path) -> None:
    refused(tmp_path, "merge", BASE, "-o", tmp_path / "nowhere" / "x.gguf", says=("nowhere",))
    refused(tmp_path, "merge", BASE, "-o", tmp_path, says=(str(tmp_path), "folder"))


def test_no_space(tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk."""
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000));"
        "sys.argv[0] = 'loragraft'; from loragraft.cli import main; main()"
    )
    target = tmp_path / "out.gguf"
    target.write_bytes(OLD)
    done = subprocess.run(
        [sys.executable, "-c", code, "merge", str(BASE), "-o", str(target)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "out.gguf" in done.stderr
    assert target.read_bytes() == OLD
    assert os.listdir(tmp_path) == ["out.gguf"]


# ---- texts, types, usage ----


def test_bad_texts(tmp_path: Path) -> None:
    binary = tmp_path / "binary.txt"
    binary.write_bytes(b"abc\xff\xfe")
    short = tmp_path / "short.txt"
    short.write_text("too short")
    refused(tmp_path, "perplexity", BASE, "-f", binary, says=("binary.txt: not UTF-8", "0xff at 3"))
    refused(
        tmp_path,
        "perplexity",
        BASE,
        "-f",
        short,
        says=("short.txt: too short", "found", "expected 1,024 or more"),
    )
    refused(tmp_path, "perplexity", BASE, "-f", tmp_path / "no.txt", says=("no.txt: no such file",))


def test_unknown_type(tmp_path: Path) -> None:
    text = data("shakespeare-valid.txt")
    for args in (
        ["merge", BASE, "-o", tmp_path / "out.gguf", "--type", "Q4_Z"],
        ["compare", "--base", BASE, "--lora", ADAPTER, "--text", text, "--type", "Q4_Z"],
    ):
        done = loragraft(*args)
        assert done.returncode == 2
        assert "Q4_Z" in done.stderr
        assert "Traceback" not in done.stderr
        assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "args",
    [
        ["nonsense"],
        ["merge"],
        ["merge", "base"],
        ["merge", "base", "-o"],
        ["merge", "base", "-o", "x", "--nonsense"],
        ["merge", "base", "-o", "x", "--threads", "0"],
        ["merge", "base", "-o", "x", "--lora", "a=b"],
        ["merge", "base", "-o", "x", "--lora", "a=nan"],
        ["quantize", "in.gguf"],
        ["run", "model.gguf"],
        ["run", "model.gguf", "-p", "x", "--temp", "-1"],
        ["run", "model.gguf", "-p", "x", "--backend", "abacus"],
        ["compare", "--base", "x"],
        ["perplexity", "model.gguf"],
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_with_2(args: list[str], tmp_path: Path) -> None:
    done = loragraft(*args, cwd=tmp_path)
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert done.stderr.startswith(("Usage: ", "loragraft: error: "))
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("threads", [1, 3])
def test_interrupted(tmp_path: Path, number: signal.Signals, threads: int) -> None:
    """At work: when some of many chunks are written."""
    target = tmp_path / "out.gguf"
    target.write_bytes(OLD)
    words = ("merge", BASE, "-o", target, "--type", "Q4_K_M", "-q", "--threads", threads)
    done = interrupted_after(4, number, *words, weights=4 * 1024)
    assert done.returncode == 128 + number
    assert "Traceback" not in done.stderr
    assert target.read_bytes() == OLD
    assert os.listdir(tmp_path) == ["out.gguf"]
