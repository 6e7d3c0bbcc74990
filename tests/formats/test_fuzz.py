"""Damaged headers: a file opens, and then all of it can be read, or it is refused by a `FormatError`; nothing else."""

from __future__ import annotations

import os
import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import literal_files
from loragraft.errors import FormatError
from loragraft.formats.gguf.reader import GGUFFile
from loragraft.formats.imatrix import Imatrix
from loragraft.formats.safetensors import SafetensorsFile
from paths import data


def read_gguf(path: Path) -> None:
    for tensor in GGUFFile.open(path).tensors.values():
        assert tensor.data().sum() >= 0


def read_safetensors(path: Path) -> None:
    for tensor in SafetensorsFile.open(path).tensors.values():
        assert tensor.data().sum() >= 0


def read_imatrix(path: Path) -> None:
    assert Imatrix.load(path).entries


Damage = list[tuple[str, int, int]]
#: What is done, where (as a fraction of 2^16 of the length), and with which byte.
damages: st.SearchStrategy[Damage] = st.lists(
    st.tuples(
        st.sampled_from(["set", "set", "set", "insert", "delete", "cut", "eight"]),
        st.integers(0, 2**16 - 1),
        st.integers(0, 255),
    ),
    min_size=1,
    max_size=4,
)


def damaged(content: bytes, damage: Damage) -> bytes:
    result = bytearray(content)
    for what, where, byte in damage:
        position = where * len(result) >> 16
        match what:
            case "set":
                result[position : position + 1] = bytes([byte])
            case "insert":
                result[position:position] = bytes([byte])
            case "delete":
                del result[position : position + 1]
            case "cut":
                del result[position + 1 :]
            case "eight":  # a number, somewhere: small, or around a power of two
                number = byte if byte < 64 else 2 ** (byte // 4) + byte % 4 - 2
                result[position : position + 8] = number.to_bytes(8, "little")
    return bytes(result)


def header_of(name: str, size: int) -> Callable[[], tuple[bytes, int]]:
    return lambda: (data(name).read_bytes()[:size], data(name).stat().st_size)


#: The bytes to damage, the length to which zeros then fill the file, and how it is read.
CASES: dict[str, tuple[Callable[[], tuple[bytes, int]], Callable[[Path], None]]] = {
    "a small GGUF file": (lambda: (literal_files.GGUF, 0), read_gguf),
    "a GGUF adapter's header": (header_of("gguf/llama-kjv.shakespeare-lora.gguf", 6000), read_gguf),
    "a small safetensors file": (lambda: (literal_files.SAFETENSORS, 0), read_safetensors),
    "a PEFT adapter's header": (
        header_of("llama-kjv.shakespeare/adapter_model.safetensors", 8000),
        read_safetensors,
    ),
    "a legacy importance matrix": (header_of("gguf/llama-kjv.merged.imatrix.dat", 4000), read_imatrix),
    "a GGUF importance matrix": (header_of("gguf/llama-kjv.merged.imatrix.gguf", 6000), read_imatrix),
}


@pytest.mark.parametrize("case", CASES)
def test_damage_is_found_or_harmless(tmp_path: Path, case: str) -> None:
    load, read = CASES[case]
    (content, size), path = load(), tmp_path / "f"

    @settings(max_examples=100)
    @given(damages)
    def check(damage: Damage) -> None:
        path.write_bytes(damaged(content, damage))
        os.truncate(path, max(size, path.stat().st_size, 1))
        tracemalloc.reset_peak()
        before, start = tracemalloc.get_traced_memory()[0], time.process_time()
        with suppress(FormatError):
            read(path)
        assert time.process_time() - start < 1
        assert tracemalloc.get_traced_memory()[1] - before < 4_000_000

    tracemalloc.start()
    try:
        check()
    finally:
        tracemalloc.stop()
