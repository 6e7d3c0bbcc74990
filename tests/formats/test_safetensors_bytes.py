"""The bytes of a safetensors file, one test for each way in which it can lie."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from literal_files import SAFETENSORS as WHOLE
from loragraft.errors import CheckpointError
from loragraft.formats.safetensors import SafetensorsFile


def safetensors(header: bytes | str, data: bytes = b"", length: int | None = None) -> bytes:
    header = header.encode() if isinstance(header, str) else header
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


def one(dtype: str = '"F32"', shape: str = "[2]", offsets: str = "[0,8]", name: str = "w") -> str:
    return f'{{"{name}":{{"dtype":{dtype},"shape":{shape},"data_offsets":{offsets}}}}}'


def two(first: str, second: str) -> str:
    entry = '{{"dtype":"U8","shape":[4],"data_offsets":{}}}'
    return f'{{"a":{entry.format(first)},"b":{entry.format(second)}}}'


def opened(path: Path, content: bytes) -> SafetensorsFile:
    path.write_bytes(content)
    return SafetensorsFile.open(path)


def test_reads_a_literal_file(tmp_path: Path) -> None:
    file = opened(tmp_path / "f", WHOLE)
    assert file.metadata == {"k": "v"}
    assert file.tensors["w"].array().tolist() == [[1.0], [-2.0]]
    assert file.tensors["s"].array().tolist() == 7
    assert file.tensors["s"].shape == ()


def test_every_truncation_and_any_addition_is_refused(tmp_path: Path) -> None:
    for length in range(len(WHOLE)):
        with pytest.raises(CheckpointError):
            opened(tmp_path / "f", WHOLE[:length])
    with pytest.raises(CheckpointError, match="longer than its header says"):
        opened(tmp_path / "f", WHOLE + b"\0")


DEEP = b'{"a":' * 200_000
EIGHT = bytes(8)

MALFORMED = {
    "seven bytes": (bytes(7), "too short for a safetensors file: found 7 bytes"),
    "a header of 2^60 bytes": (safetensors("{}", length=2**60), "or its header is too large"),
    "a header of 2^64-1 bytes": (safetensors("{}", length=2**64 - 1), "or its header is too large"),
    "a header of 100,000,001 bytes": (safetensors("{}", length=100_000_001), "or its header is too large"),
    "a header longer than the file": (safetensors("{}", length=3), "truncated within its header"),
    "no JSON": (safetensors("hello"), "the safetensors header is not JSON"),
    "nothing": (safetensors(""), "the safetensors header is not JSON"),
    "no UTF-8": (safetensors(b'{"\xff":1}'), "not UTF-8: found a wrong byte at offset 2"),
    "a list": (safetensors("[]"), "does not hold a JSON object: found list"),
    "nested too deeply": (safetensors(DEEP), "nested too deeply|not JSON"),
    "a number of 10,000 digits": (safetensors(one(offsets=f"[0,{'9' * 10_000}]"), EIGHT), "is not JSON"),
    "a name twice": (safetensors('{"w":1,"w":2}'), "holds a key twice: found 'w'"),
    "a field twice": (
        safetensors(one(dtype='"F32","dtype":"U8"'), EIGHT),
        "holds a key twice: found 'dtype'",
    ),
    "metadata that are a list": (safetensors('{"__metadata__":[]}'), "not a map of strings to strings"),
    "metadata with a number": (safetensors('{"__metadata__":{"a":1}}'), "not a map of strings to strings"),
    "an escape sequence in a name": (
        safetensors(one(name="\\u001b[2J"), EIGHT),
        r"tensor '\\x1b\[2J' has unprintable characters",
    ),
    "half a surrogate in a name": (
        safetensors(one(name="\\ud800"), EIGHT),
        "the safetensors header holds half of a surrogate pair, which is not a character",
    ),
    "a tensor that is null": (
        safetensors('{"w":null}'),
        "'w' is not described by dtype, shape and data_offsets",
    ),
    "a tensor without dtype": (safetensors('{"w":{"shape":[],"data_offsets":[0,0]}}'), "is not described by"),
    "a field too many": (safetensors(one(dtype='"F32","x":0'), EIGHT), "is not described by"),
    "an unknown dtype": (safetensors(one(dtype='"F17"'), EIGHT), "unknown dtype: found 'F17'"),
    "a dtype that is a list": (safetensors(one(dtype="[]"), EIGHT), r"unknown dtype: found \[\]"),
    "a shape that is a number": (safetensors(one(shape="2"), EIGHT), "wrong shape: found 2"),
    "a negative length": (safetensors(one(shape="[-2]"), EIGHT), r"wrong shape: found \[-2\]"),
    "a length that is true": (safetensors(one(shape="[true,2]"), EIGHT), "wrong shape"),
    "a length of 2.0": (safetensors(one(shape="[2.0]"), EIGHT), "wrong shape"),
    "a length of 2^63": (safetensors(one(shape=f"[{2**63}]"), EIGHT), "wrong shape"),
    "a thousand axes": (safetensors(one(shape="[" + "1," * 999 + "2]"), EIGHT), "wrong shape"),
    "a product that wraps to 2": (
        safetensors(one(shape=f"[{2**62},{2**62},4]"), EIGHT),
        "the data of tensor 'w' have the wrong length: found 8 bytes",
    ),
    "three offsets": (safetensors(one(offsets="[0,8,8]"), EIGHT), "wrong data_offsets"),
    "offsets backwards": (safetensors(one(offsets="[8,0]"), EIGHT), "wrong data_offsets"),
    "a negative offset": (safetensors(one(offsets="[-8,0]"), EIGHT), "wrong data_offsets"),
    "offsets that are text": (safetensors(one(offsets='["0","8"]'), EIGHT), "wrong data_offsets"),
    "too few bytes": (safetensors(one(offsets="[0,7]"), bytes(7)), "found 7 bytes, expected 8 for F32"),
    "too many bytes": (safetensors(one(offsets="[0,9]"), bytes(9)), "found 9 bytes, expected 8 for F32"),
    "half a byte": (safetensors(one(dtype='"F4"', shape="[3]", offsets="[0,1]"), b"\0"), "found 1 bytes"),
    "data beyond the file": (safetensors(one(), bytes(7)), "truncated, or longer than its header says"),
    "data that nothing names": (safetensors(one(), bytes(9)), "truncated, or longer than its header says"),
    "data before the first": (safetensors(one(offsets="[8,16]"), bytes(16)), "leave a gap.*found offset 8"),
    "a hole": (safetensors(two("[0,4]", "[5,9]"), bytes(9)), "'b' leave a gap or overlap"),
    "an overlap": (safetensors(two("[0,4]", "[3,7]"), bytes(7)), "'b' leave a gap or overlap"),
    "the same place": (safetensors(two("[0,4]", "[0,4]"), bytes(4)), "'b' leave a gap or overlap"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed(tmp_path: Path, case: str) -> None:
    content, problem = MALFORMED[case]
    (tmp_path / "f").write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=problem) as error:
            SafetensorsFile.open(tmp_path / "f")
        assert tracemalloc.get_traced_memory()[1] < 20 * len(content) + 1_000_000
    finally:
        tracemalloc.stop()
    assert str(error.value).startswith(f"{tmp_path / 'f'}: ")
    assert str(error.value).isprintable()
    assert len(str(error.value)) < len(str(tmp_path)) + 400


@pytest.mark.parametrize(
    "content",
    [
        safetensors("{}"),
        safetensors('{"__metadata__":{}}   '),
        safetensors(one(dtype='"F4"', shape="[3,2]", offsets="[0,3]"), bytes(3)),
        safetensors(one(dtype='"F8_E4M3"', shape="[1,3]", offsets="[0,3]"), bytes(3)),
        safetensors(two("[4,8]", "[0,4]"), bytes(8)),
        safetensors(one(shape="[0,5]", offsets="[0,0]")),
    ],
)
def test_unusual_but_well_formed(tmp_path: Path, content: bytes) -> None:
    for tensor in opened(tmp_path / "f", content).tensors.values():
        assert not tensor.data().any()
