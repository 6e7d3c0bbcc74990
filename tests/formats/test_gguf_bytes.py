"""The bytes of a GGUF file: a whole one as a literal, and one test for each way in which a file can lie."""

from __future__ import annotations

import struct
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from literal_files import GGUF as WHOLE
from loragraft.errors import GGUFError
from loragraft.formats.gguf.reader import GGUFFile
from loragraft.formats.gguf.values import Value, ValueType
from loragraft.formats.gguf.writer import GGUFLayout, GGUFWriter, TensorSpec
from loragraft.quants.types import BY_NAME, F16, F32

U8, U32, F32_VALUE, BOOL, STRING, ARRAY, U64 = 0, 4, 6, 7, 8, 9, 10


def u32(number: int) -> bytes:
    return struct.pack("<I", number)


def u64(number: int) -> bytes:
    return struct.pack("<Q", number)


def text(content: bytes, length: int | None = None) -> bytes:
    return u64(len(content) if length is None else length) + content


def entry(key: bytes, kind: int, value: bytes) -> bytes:
    return text(key) + u32(kind) + value


def tensor(name: bytes = b"w", dims: tuple[int, ...] = (4,), type_id: int = 0, offset: int = 0) -> bytes:
    return text(name) + u32(len(dims)) + b"".join(map(u64, dims)) + u32(type_id) + u64(offset)


def gguf(
    *parts: bytes,
    magic: bytes = b"GGUF",
    version: int = 3,
    tensors: int = 0,
    entries: int = 0,
    data: bytes = b"",
    alignment: int = 32,
) -> bytes:
    header = magic + u32(version) + u64(tensors) + u64(entries) + b"".join(parts)
    return header + bytes(-len(header) % alignment) + data


ARCH = entry(b"general.architecture", STRING, text(b"llama"))

# What literal_files.GGUF holds.
WHOLE_METADATA = {
    "a": Value.u32(42),
    "bool": Value.boolean(True),
    "c": Value.string("xé"),
    "d": Value.strings(["\udcff", ""]),
    "e": Value.numbers(ValueType.INT32, [-2]),
}
WHOLE_SPECS = [TensorSpec("m", (2, 3), F16), TensorSpec("n", (1, 32), BY_NAME["Q8_0"])]


def opened(path: Path, content: bytes) -> GGUFFile:
    path.write_bytes(content)
    return GGUFFile.open(path)


def test_reads_a_literal_file(tmp_path: Path) -> None:
    file = opened(tmp_path / "f", WHOLE)
    assert (file.version, file.alignment, file.data_start) == (3, 32, len(WHOLE) - 96)
    assert file.metadata == WHOLE_METADATA
    assert file.tensors["m"].shape == (2, 3)
    assert file.tensors["m"].data().view("<f2").tolist() == [[1, 2, 3], [4, 5, 6]]
    assert file.tensors["m"].rows(1, 2).view("<f2").tolist() == [[4, 5, 6]]
    assert file.tensors["n"].data().tolist() == [list(range(34))]
    with pytest.raises(IndexError):
        file.tensors["m"].rows(1, 3)


def test_writes_the_literal_file(tmp_path: Path) -> None:
    with GGUFWriter(tmp_path / "f", WHOLE_METADATA, WHOLE_SPECS) as writer:
        writer.write("n", 0, bytes(range(34)))
        writer.write("m", 6, np.array([4, 5, 6], dtype=np.float16))
        writer.write("m", 0, np.array([1, 2, 3], dtype=np.float16))
    assert (tmp_path / "f").read_bytes() == WHOLE


def test_version_2_is_the_same(tmp_path: Path) -> None:
    file = opened(tmp_path / "f", WHOLE[:4] + u32(2) + WHOLE[8:])
    assert file.version == 2
    assert file.metadata == WHOLE_METADATA


def test_views_outlive_the_file(tmp_path: Path) -> None:
    with opened(tmp_path / "f", WHOLE) as file:
        view = file.tensors["n"].data()
    assert view.tolist() == [list(range(34))]
    assert file.tensors == {}


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    for length in range(len(WHOLE) - 30):
        with pytest.raises(GGUFError):
            opened(tmp_path / "f", WHOLE[:length])


def test_padding_after_the_last_tensor_may_be_missing(tmp_path: Path) -> None:
    assert opened(tmp_path / "f", WHOLE[:-30]).tensors["n"].data().tolist() == [list(range(34))]


HUGE = 2**60
NESTED = entry(b"k", ARRAY, (u32(ARRAY) + u64(1)) * 5 + u32(U8) + u64(0))

MALFORMED = {
    "other magic": (gguf(magic=b"GGML"), "not a GGUF file: found magic b'GGML', expected b'GGUF'"),
    "a safetensors file": (
        u64(100) + b'{"x": {}}' + bytes(32),
        "not a GGUF file: .*; name the folder that a safetensors file lies in",
    ),
    "version 1": (gguf(version=1), "unsupported GGUF version: found 1, expected 2 or 3"),
    "version 4": (gguf(version=4), "unsupported GGUF version: found 4"),
    "version 0": (gguf(version=0), "unsupported GGUF version: found 0"),
    "big-endian": (b"GGUF\x00\x00\x00\x03" + bytes(24), "a big-endian GGUF file"),
    "2^60 entries": (gguf(entries=HUGE), f"wrong about {HUGE} metadata entries"),
    "2^64-1 entries": (gguf(entries=2**64 - 1), f"wrong about {2**64 - 1} metadata entries"),
    "2^60 tensors": (gguf(tensors=HUGE), f"wrong about {HUGE} tensors"),
    "one entry too many": (gguf(ARCH, entries=2, alignment=1), "wrong about the"),
    "2^60 bytes of key": (
        gguf(text(b"k", HUGE), bytes(9), entries=1),
        "wrong about the key of metadata entry 0",
    ),
    "empty key": (gguf(entry(b"", U8, b"\1"), bytes(9), entries=1), "metadata entry 0 has an empty key"),
    "repeated key": (gguf(ARCH, ARCH, entries=2), "duplicate metadata key: found 'general.architecture'"),
    "value type 13": (gguf(entry(b"k", 13, bytes(8)), entries=1), "unknown value type of 'k': found 13"),
    "2^60 bytes of string": (gguf(entry(b"k", STRING, u64(HUGE)), entries=1), "wrong about the value of 'k'"),
    "2^60 numbers": (
        gguf(entry(b"k", ARRAY, u32(U32) + u64(HUGE)), entries=1),
        f"the {HUGE} elements of 'k'",
    ),
    "2^64-1 bytes": (gguf(entry(b"k", ARRAY, u32(U8) + u64(2**64 - 1)), entries=1), "elements of 'k'"),
    "2^62 u64, 8 times which wraps": (
        gguf(entry(b"k", ARRAY, u32(U64) + u64(2**62)), entries=1),
        "elements of 'k'",
    ),
    "2^60 strings": (
        gguf(entry(b"k", ARRAY, u32(STRING) + u64(HUGE)), entries=1),
        f"the {HUGE} elements of 'k'",
    ),
    "2^60 arrays": (
        gguf(entry(b"k", ARRAY, u32(ARRAY) + u64(HUGE)), entries=1),
        f"the {HUGE} elements of 'k'",
    ),
    "2^60 bytes of an array's string": (
        gguf(entry(b"k", ARRAY, u32(STRING) + u64(2) + text(b"ok") + u64(HUGE)), entries=1),
        "wrong about the 2 elements of 'k'",
    ),
    "arrays nested five deep": (
        gguf(NESTED, bytes(32), entries=1),
        "the arrays of 'k' are nested too deeply",
    ),
    "element type 13": (gguf(entry(b"k", ARRAY, u32(13) + u64(0)), entries=1), "unknown value type of 'k'"),
    "alignment 0": (
        gguf(entry(b"general.alignment", U32, u32(0)), entries=1),
        "found 0, expected a power of two",
    ),
    "alignment 48": (
        gguf(entry(b"general.alignment", U32, u32(48)), entries=1),
        "found 48, expected a power of",
    ),
    "alignment of type u64": (
        gguf(entry(b"general.alignment", U64, u64(32)), entries=1),
        "general.alignment has a wrong type: found UINT64, expected UINT32",
    ),
    "2^60 bytes of name": (gguf(text(b"w", HUGE), bytes(32), tensors=1), "wrong about the name of tensor 0"),
    "five axes": (gguf(tensor(dims=(1,) * 5), tensors=1, data=bytes(16)), "too many axes: found 5"),
    "2^32-1 axes": (
        gguf(text(b"w"), u32(2**32 - 1), bytes(32), tensors=1),
        f"'w' has too many axes: found {2**32 - 1}",
    ),
    "an axis of 0": (gguf(tensor(dims=(4, 0)), tensors=1), r"'w' has no elements: found shape \(0, 4\)"),
    "an axis of 2^63": (
        gguf(tensor(dims=(2**63,)), tensors=1, data=bytes(64)),
        "'w' does not fit in the file",
    ),
    "axes whose product wraps to 4": (
        gguf(tensor(dims=(2**62 + 1, 4)), tensors=1, data=bytes(64)),
        "'w' does not fit in the file",
    ),
    "type 4, which ggml removed": (gguf(tensor(type_id=4), tensors=1, data=bytes(64)), "found number 4"),
    "type 2^31": (gguf(tensor(type_id=2**31), tensors=1, data=bytes(64)), f"found number {2**31}"),
    "half a block": (
        gguf(tensor(dims=(48,), type_id=8), tensors=1, data=bytes(64)),
        "rows of tensor 'w' are not whole blocks of Q8_0: found 48 columns, expected a multiple of 32",
    ),
    "an odd offset": (gguf(tensor(offset=8), tensors=1, data=bytes(64)), "not aligned: found offset 8"),
    "an offset of 2^63": (
        gguf(tensor(offset=2**63), tensors=1, data=bytes(64)),
        "does not fit in the file",
    ),
    "an offset that wraps": (gguf(tensor(offset=2**64 - 32), tensors=1, data=bytes(64)), "does not fit in"),
    "no data": (gguf(tensor(), tensors=1), "does not fit in the file: it is truncated"),
    "one byte of data missing": (gguf(tensor(), tensors=1, data=bytes(15)), "does not fit in the file"),
    "two of a name": (
        gguf(tensor(), tensor(offset=32), tensors=2, data=bytes(64)),
        "duplicate tensor name: found 'w'",
    ),
    "the same place": (
        gguf(tensor(b"a"), tensor(b"b"), tensors=2, data=bytes(64)),
        "tensors 'a' and 'b' overlap: found 16 bytes shared",
    ),
    "an overlap": (
        gguf(tensor(b"a", offset=32), tensor(b"b", dims=(12,)), tensors=2, data=bytes(64)),
        "tensors 'b' and 'a' overlap: found 16 bytes shared",
    ),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed(tmp_path: Path, case: str) -> None:
    content, problem = MALFORMED[case]
    (tmp_path / "f").write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(GGUFError, match=problem) as error:
            GGUFFile.open(tmp_path / "f")
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    assert str(error.value).startswith(f"{tmp_path / 'f'}: ")
    assert "\n" not in str(error.value)


WELL_FORMED = {
    "no tensors, no metadata": gguf(),
    "no padding where there are no tensors": gguf(ARCH, entries=1, alignment=1),
    "a gap between tensors": gguf(tensor(b"a"), tensor(b"b", offset=96), tensors=2, data=bytes(112)),
    "tensors in another order than their data": gguf(
        tensor(b"a", offset=32), tensor(b"b"), tensors=2, data=bytes(48)
    ),
    "alignment 1": gguf(
        entry(b"general.alignment", U32, u32(1)),
        tensor(b"a", offset=16),
        tensor(b"b"),
        entries=1,
        tensors=2,
        data=bytes(32),
        alignment=1,
    ),
    "alignment 64": gguf(
        entry(b"general.alignment", U32, u32(64)),
        tensor(offset=64),
        entries=1,
        tensors=1,
        data=bytes(80),
        alignment=64,
    ),
    "a tensor without axes": gguf(tensor(dims=()), tensors=1, data=bytes(4)),
    "empty arrays": gguf(entry(b"k", ARRAY, u32(STRING) + u64(0)), entries=1),
    "nested arrays": gguf(
        entry(b"k", ARRAY, u32(ARRAY) + u64(2) + (u32(U8) + u64(2) + b"\1\2") * 2), bytes(9), entries=1
    ),
    "a bool of 2": gguf(entry(b"k", BOOL, b"\2"), bytes(9), entries=1),
}


@pytest.mark.parametrize("case", WELL_FORMED)
def test_unusual_but_well_formed(tmp_path: Path, case: str) -> None:
    file = opened(tmp_path / "f", WELL_FORMED[case])
    for found in file.tensors.values():
        assert not found.data().any()
    if "k" in file.metadata and case == "nested arrays":
        inner = Value.numbers(ValueType.UINT8, [1, 2])
        assert file.metadata["k"] == Value(ValueType.ARRAY, [inner, inner], ValueType.ARRAY)
    specs = [TensorSpec(found.name, found.shape, found.type) for found in file.tensors.values()]
    with GGUFWriter(tmp_path / "again", file.metadata, specs) as writer:
        for found in file.tensors.values():
            writer.write(found.name, 0, found.data())
    again = GGUFFile.open(tmp_path / "again")
    assert again.metadata == file.metadata
    assert {name: found.shape for name, found in again.tensors.items()} == {
        name: found.shape for name, found in file.tensors.items()
    }


def test_a_large_vocabulary_opens_quickly(tmp_path: Path) -> None:
    tokens = [f"token {index}" for index in range(300_000)]
    with GGUFWriter(tmp_path / "f", {"tokens": Value.strings(tokens)}, []):
        pass
    start = time.process_time()
    file = GGUFFile.open(tmp_path / "f")
    assert time.process_time() - start < 2  # 0.1 s on an idle machine; a reader of gguf-py's kind takes 5
    assert file.metadata["tokens"].data == tokens


def test_header_size_is_capped(tmp_path: Path) -> None:
    with (tmp_path / "f").open("wb") as file:  # a sparse file of 16 GB, all of it one array
        file.write(gguf(entry(b"k", ARRAY, u32(U8) + u64(2**34 - 4096)), entries=1, alignment=1))
        file.truncate(2**34)
    with pytest.raises(GGUFError, match=r"the header is too large at the \d+ elements of 'k'"):
        GGUFFile.open(tmp_path / "f")


# ---- what the writer refuses ----


def test_leading_axes_of_one_are_not_stored() -> None:
    for shape, stored in [
        ((1, 1, 7), (7,)),
        ((3, 1, 7), (3, 1, 7)),
        ((1,), (1,)),
        ((), (1,)),
        ((1, 1), (1,)),
    ]:
        layout = GGUFLayout.plan({}, [TensorSpec("w", shape or (1,), F32)])
        expected = gguf(tensor(dims=tuple(reversed(stored))), tensors=1)
        assert layout.header == expected


@pytest.mark.parametrize(
    ("specs", "problem"),
    [
        ([TensorSpec("w", (4,), F32)] * 2, "two tensors have this name"),
        ([TensorSpec("", (4,), F32)], "too long or empty"),
        ([TensorSpec("é" * 32, (4,), F32)], "too long or empty: expected 1 to 63 bytes"),
        ([TensorSpec("w", (2,) * 5, F32)], "cannot store its shape"),
        ([TensorSpec("w", (2, 0), F32)], "cannot store its shape"),
    ],
)
def test_tensors_that_no_file_can_hold(specs: list[TensorSpec], problem: str) -> None:
    with pytest.raises(GGUFError, match=problem):
        GGUFLayout.plan({}, specs)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (Value(ValueType.UINT8, 300), "does not fit UINT8: found 300"),
        (Value(ValueType.UINT32, -1), "does not fit UINT32: found -1"),
        (Value(ValueType.INT32, "x"), "does not fit INT32: found x"),
        (Value(ValueType.ARRAY, [1]), "an array without an element type"),
    ],
)
def test_values_that_no_file_can_hold(value: Value, problem: str) -> None:
    with pytest.raises(GGUFError, match=problem):
        GGUFLayout.plan({"k": value}, [])


def test_wrong_alignments() -> None:
    for value in (Value.u32(0), Value.u32(48), Value.i32(32)):
        with pytest.raises(GGUFError, match=r"general\.alignment"):
            GGUFLayout.plan({"general.alignment": value}, [])
