"""Importance matrices: both formats of llama-imatrix, to the bit."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from loragraft.errors import FormatError, ImatrixError
from loragraft.formats.gguf.reader import GGUFFile
from loragraft.formats.gguf.values import Value, ValueType
from loragraft.formats.gguf.writer import GGUFWriter, TensorSpec
from loragraft.formats.imatrix import Imatrix
from loragraft.quants.types import F32
from paths import data

GGUF, LEGACY = "gguf/llama-kjv.merged.imatrix.gguf", "gguf/llama-kjv.merged.imatrix.dat"


def test_both_formats_hold_the_same_values() -> None:
    new, old = Imatrix.load(data(GGUF)), Imatrix.load(data(LEGACY))
    assert new.entries.keys() == old.entries.keys()
    assert len(new.entries) == 28
    for name, values in new.entries.items():
        assert values.dtype == np.float32
        np.testing.assert_array_equal(values, old.entries[name])
    assert new.datasets == old.datasets == ["calib.txt"]
    assert (new.chunk_count, old.chunk_count) == (173, 173)
    assert (new.chunk_size, old.chunk_size) == (256, 0)


def test_values_are_sums_over_counts_in_float32() -> None:
    with GGUFFile.open(data(GGUF)) as file:
        sums = file.tensors["blk.2.ffn_down.weight.in_sum2"].data().view("<f4")
        (count,) = file.tensors["blk.2.ffn_down.weight.counts"].data().view("<f4").ravel()
    expected = [np.float32(value) / np.float32(count) for value in sums.ravel()]
    np.testing.assert_array_equal(Imatrix.load(data(GGUF)).entries["blk.2.ffn_down.weight"], [expected])


def test_saving_gives_the_bytes_of_llama_imatrix(tmp_path: Path) -> None:
    Imatrix.load(data(GGUF)).save_gguf(tmp_path / "copy.gguf")
    assert (tmp_path / "copy.gguf").read_bytes() == data(GGUF).read_bytes()


def test_a_legacy_file_saved_as_gguf_keeps_its_values(tmp_path: Path) -> None:
    old = Imatrix.load(data(LEGACY))
    old.save_gguf(tmp_path / "new.gguf")
    new = Imatrix.load(tmp_path / "new.gguf")
    for name, values in old.entries.items():
        np.testing.assert_array_equal(new.entries[name], values)


def test_an_expert_without_tokens_has_importance_one() -> None:
    sums = np.array([[2, 4], [0, 0], [9, 3]], dtype=np.float32)
    imatrix = Imatrix({"w": sums}, {"w": np.array([2, 0, 3])})
    assert imatrix.entries["w"].tolist() == [[1, 2], [1, 1], [3, 1]]


def test_importance_follows_the_weights_shape() -> None:
    # What a legacy file says of two experts with three columns each.
    imatrix = Imatrix({"w": np.arange(6, dtype=np.float32)[np.newaxis]}, {"w": np.array([2])})
    found = imatrix.importance("w", (2, 5, 3))
    assert found is not None
    assert found.tolist() == [[0, 0.5, 1], [1.5, 2, 2.5]]
    assert imatrix.importance("other", (5, 3)) is None
    with pytest.raises(ImatrixError, match=r"w: .* another model: found 6 values, expected 3"):
        imatrix.importance("w", (5, 3))


def test_select_by_parts_of_names() -> None:
    names = ["blk.0.attn_q.weight", "blk.0.attn_k.weight", "blk.1.attn_q.weight"]
    imatrix = Imatrix(dict.fromkeys(names, np.ones((1, 1), np.float32)), dict.fromkeys(names, np.array([1])))
    assert list(imatrix.select(include=["attn_q"], exclude=["blk.1"]).entries) == names[:1]
    assert list(imatrix.select(exclude=["attn_k"]).entries) == [names[0], names[2]]
    assert list(imatrix.select().entries) == names


def legacy(*entries: tuple[bytes, int, list[float]], tail: bytes = b"") -> bytes:
    parts = [struct.pack("<i", len(entries))]
    for name, calls, sums in entries:
        parts.append(struct.pack(f"<i{len(name)}sii{len(sums)}f", len(name), name, calls, len(sums), *sums))
    return b"".join(parts) + tail


def load(path: Path, content: bytes) -> Imatrix:
    path.write_bytes(content)
    return Imatrix.load(path)


def test_legacy_without_a_count_holds_means(tmp_path: Path) -> None:
    found = load(tmp_path / "f", legacy((b"a", 4, [8, 2]), (b"b", 0, [8, 2])))
    assert found.entries["a"].tolist() == [[2, 0.5]]
    assert found.entries["b"].tolist() == [[8, 2]]
    assert (found.datasets, found.chunk_count) == ([], 0)


WHOLE = legacy((b"blk.0.x.weight", 3, [1, 2, 3]), (b"b", 1, [5]), tail=struct.pack("<ii4s", 7, 4, b"text"))


def test_every_truncation_of_a_legacy_file_is_refused_or_one_of_the_older_forms(tmp_path: Path) -> None:
    whole = load(tmp_path / "f", WHOLE)
    assert (whole.datasets, whole.chunk_count) == (["text"], 7)
    for length in range(len(WHOLE)):
        if length in range(len(WHOLE) - 12, len(WHOLE) - 4):  # before the dataset: the tail is optional
            assert load(tmp_path / "f", WHOLE[:length]).entries.keys() == {"blk.0.x.weight", "b"}
        else:
            with pytest.raises(ImatrixError):
                load(tmp_path / "f", WHOLE[:length])


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"hello world, I am a text file, not a matrix", "is not an importance matrix"),
        (struct.pack("<i", 0), "is not an importance matrix"),
        (struct.pack("<iii", 1, -5, 0) + bytes(20), "wrong about name 0"),
        (
            struct.pack("<i", 1) + struct.pack("<i1sii", 1, b"a", 1, 2**31 - 1) + bytes(8),
            "wrong about the sums for 'a'",
        ),
        (legacy((b"a", 1, []), (b"b", 1, [1.0] * 9)), "the entry for 'a' has no sums"),
        (legacy((b"a", 1, [1.0] * 9), (b"a", 1, [1.0])), "two entries have the same name"),
        (legacy((b"a", 1, [1.0, 2.0, float("nan")])), "found nan in row 0, column 2"),
        (legacy((b"a", 1, [float("inf"), 2.0, 3.0])), "found inf in row 0, column 0"),
    ],
)
def test_malformed_legacy_files(tmp_path: Path, content: bytes, problem: str) -> None:
    with pytest.raises(ImatrixError, match=problem):
        load(tmp_path / "f", content)


HEAD = {
    "imatrix.datasets": Value.strings(["t"]),
    "imatrix.chunk_count": Value.u32(1),
    "imatrix.chunk_size": Value.u32(8),
}


@pytest.mark.parametrize(
    ("metadata", "tensors", "problem"),
    [
        ({}, {"a.in_sum2": [1.0]}, "is not an importance matrix"),
        (HEAD, {}, "empty"),
        (HEAD, {"a.in_sum2": [1.0]}, "'a' has no sums or no counts"),
        (HEAD, {"a.in_sum2": [1.0], "b.in_sum2": [1.0], "b.counts": [1.0]}, "'a' has no sums or no counts"),
        (HEAD, {"a.in_sum2": [1.0, 2, 3], "a.counts": [1.0, 2]}, "do not fit"),
        (HEAD, {"a.in_sum2": [1.0], "a.counts": [float("nan")]}, "a count for 'a' is not a finite number"),
        (HEAD, {"a.in_sum2": [1.0], "a.counts": [1e30]}, "a count for 'a' is not a finite number"),
        (HEAD, {"a.in_sum2": [float("nan")], "a.counts": [1.0]}, "a sum for 'a' is not a finite number"),
        (HEAD | {"imatrix.datasets": Value.u32(1)}, {"a.in_sum2": [1.0]}, "not a list of strings"),
        (
            HEAD | {"imatrix.datasets": Value.numbers(ValueType.UINT8, [1])},
            {"a.in_sum2": [1.0]},
            "not a list of strings",
        ),
        (
            HEAD | {"imatrix.chunk_count": Value.string("x")},
            {"a.in_sum2": [1.0], "a.counts": [1.0]},
            "imatrix.chunk_count is not a number",
        ),
    ],
)
def test_malformed_gguf_files(
    tmp_path: Path, metadata: dict[str, Value], tensors: dict[str, list[float]], problem: str
) -> None:
    specs = [TensorSpec(name, (len(values),), F32) for name, values in tensors.items()]
    with GGUFWriter(tmp_path / "f.gguf", metadata, specs) as writer:
        for name, values in tensors.items():
            writer.write(name, 0, np.array(values, dtype=np.float32))
    with pytest.raises(ImatrixError, match=problem):
        Imatrix.load(tmp_path / "f.gguf")


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="no such file"):
        Imatrix.load(tmp_path / "nowhere")
    with pytest.raises(FormatError, match="is a folder"):
        Imatrix.load(tmp_path)
