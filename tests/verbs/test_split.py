"""Splitting and joining give the files of llama-gguf-split, byte for byte."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from gguf_files import write_gguf
from loragraft.errors import GGUFError, OutputError
from loragraft.formats.gguf.model import open_gguf
from loragraft.formats.gguf.values import Value
from loragraft.formats.split import SplitLimits, parse_size
from loragraft.verbs.split import SplitFile, join, split


def small_model(folder: Path) -> Path:
    """Ten tensors of 4 to 400 floats."""
    metadata = {
        "general.architecture": Value.string("llama"),
        "llama.block_count": Value.u32(2),
        "tokenizer.ggml.tokens": Value.strings(["a", "", "é"]),
    }
    shapes = [(4,), (20, 20), (1, 5), (3, 7), (100,), (2, 3, 4), (33,), (8, 8), (300,), (1,)]
    arrays = {
        f"blk.{index}.weight": np.arange(np.prod(shape)).reshape(shape) + index
        for index, shape in enumerate(shapes)
    }
    return write_gguf(folder / "small.gguf", metadata, arrays)


def model_of_megabytes(folder: Path) -> Path:
    """Tensors of 0.4, 0.4, 1.2, 0.8, 0.2 MB."""
    arrays = {
        f"{size}.weight": np.full((size, 1000), size, dtype=np.float32) for size in (100, 101, 300, 200, 50)
    }
    return write_gguf(folder / "large.gguf", {"general.architecture": Value.string("llama")}, arrays)


def digest(paths: list[Path]) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


# sha256 of the files that llama-gguf-split (llama.cpp 0c1e57098) wrote, one after the other, and their number.
@pytest.mark.parametrize(
    ("limits", "count", "sha256"),
    [
        (SplitLimits(max_tensors=3), 4, "fc22b8ce19c494f4e3e5dc34427e5d83d6c6e7e40534b596d09f0cae48c16cd7"),
        (SplitLimits(max_tensors=10), 1, "ac2f94c6a57a9cfa0f33c331016800189b3917930a8abb90e14ac204c9e9daf9"),
        (SplitLimits(), 1, "ac2f94c6a57a9cfa0f33c331016800189b3917930a8abb90e14ac204c9e9daf9"),
        (
            SplitLimits(max_tensors=4, first_without_tensors=True),
            4,
            "55f16ba985326caedbce069fb03dec359d20956ca227a412f4086cd95aec51aa",
        ),
    ],
)
def test_split_by_tensors(tmp_path: Path, limits: SplitLimits, count: int, sha256: str) -> None:
    shards = split(small_model(tmp_path), tmp_path / "o", limits)
    assert [shard.path.name for shard in shards] == [
        f"o-{n + 1:05d}-of-{count:05d}.gguf" for n in range(count)
    ]
    assert digest([shard.path for shard in shards]) == sha256
    assert [shard.size for shard in shards] == [shard.path.stat().st_size for shard in shards]


def test_split_by_size(tmp_path: Path) -> None:
    shards = split(model_of_megabytes(tmp_path), tmp_path / "o", SplitLimits(max_bytes=parse_size("1M")))
    assert [shard.n_tensors for shard in shards] == [2, 1, 2]
    assert (
        digest([shard.path for shard in shards])
        == "15749d263a5cb37ee7b90b11724ac3f5df4311704eefee03ed065c53812bd76f"
    )


def test_a_tensor_above_the_limit_gets_its_own_file(tmp_path: Path) -> None:
    shards = split(model_of_megabytes(tmp_path), tmp_path / "o", SplitLimits(max_bytes=1000))
    assert [shard.n_tensors for shard in shards] == [1] * 5


def test_join_writes_the_bytes_of_the_whole(tmp_path: Path) -> None:
    shards = split(small_model(tmp_path), tmp_path / "o", SplitLimits(max_tensors=3))
    joined = join(shards[2].path, tmp_path / "j.gguf")  # any of the files stands for the whole
    assert digest([joined]) == "263af6a2957776c2a9ad0fde803fbcd15e144b6fa8cd9a152e1b929bfa0af892"


def test_a_split_model_reads_as_the_whole(tmp_path: Path) -> None:
    whole = open_gguf(small_model(tmp_path))
    shards = split(whole.path, tmp_path / "o.gguf", SplitLimits(max_tensors=3))
    parts = open_gguf(shards[1].path)
    assert parts.arch == whole.arch
    assert parts.metadata == whole.metadata
    assert list(parts.tensors) == list(whole.tensors)
    for name, tensor in whole.tensors.items():
        np.testing.assert_array_equal(
            parts.tensors[name].rows(0, tensor.n_rows), tensor.rows(0, tensor.n_rows)
        )


def test_splitting_a_split_model_divides_it_anew(tmp_path: Path) -> None:
    first = split(small_model(tmp_path), tmp_path / "a", SplitLimits(max_tensors=3))
    again = split(first[0].path, tmp_path / "b", SplitLimits(max_tensors=10))
    assert digest([again[0].path]) == "ac2f94c6a57a9cfa0f33c331016800189b3917930a8abb90e14ac204c9e9daf9"


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    model = small_model(tmp_path)
    plan = split(model, tmp_path / "o", SplitLimits(max_tensors=3), dry_run=True)
    assert list(tmp_path.iterdir()) == [model]
    assert plan == split(model, tmp_path / "o", SplitLimits(max_tensors=3))
    assert plan[0] == SplitFile(tmp_path / "o-00001-of-00004.gguf", 3, plan[0].path.stat().st_size)


def test_a_failure_leaves_no_file_of_the_set(tmp_path: Path) -> None:
    model = small_model(tmp_path)
    (tmp_path / "o-00003-of-00004.gguf").mkdir()
    with pytest.raises(OutputError, match=r"o-00003-of-00004\.gguf: is a folder"):
        split(model, tmp_path / "o", SplitLimits(max_tensors=3))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o-00003-of-00004.gguf", "small.gguf"]


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    return [shard.path for shard in split(small_model(tmp_path), tmp_path / "o", SplitLimits(max_tensors=3))]


def test_a_missing_file_is_named(shards: list[Path]) -> None:
    shards[3].unlink()
    with pytest.raises(GGUFError, match=r"o-00004-of-00004\.gguf: file 4 of 4 of the split model is missing"):
        open_gguf(shards[0])


def test_swapped_files_are_noticed(shards: list[Path]) -> None:
    content = shards[2].read_bytes()
    shards[2].write_bytes(shards[1].read_bytes())
    shards[1].write_bytes(content)
    with pytest.raises(
        GGUFError, match=r"not the file that its name says: found split\.no 2 of 4, expected 1 of 4"
    ):
        open_gguf(shards[0])


def test_a_renamed_file_is_explained(shards: list[Path]) -> None:
    renamed = shards[0].rename(shards[0].with_name("model.gguf"))
    with pytest.raises(GGUFError, match=r"expected NAME-00001-of-00004\.gguf"):
        open_gguf(renamed)


def test_a_tensor_in_two_files_is_refused(tmp_path: Path, shards: list[Path]) -> None:
    metadata = {"split.no": Value.u16(1), "split.count": Value.u16(4), "split.tensors.count": Value.i32(10)}
    write_gguf(shards[1], metadata, {f"blk.{n}.weight": np.zeros(1) for n in (0, 4, 5)})
    with pytest.raises(GGUFError, match=r"tensor 'blk\.0\.weight' is also in another file"):
        open_gguf(shards[0])


def test_an_incomplete_model_is_refused(shards: list[Path]) -> None:
    metadata = {"split.no": Value.u16(1), "split.count": Value.u16(4), "split.tensors.count": Value.i32(10)}
    write_gguf(shards[1], metadata, {"blk.3.weight": np.zeros(1)})
    with pytest.raises(GGUFError, match="the split model is incomplete: found 8 tensors, expected 10"):
        open_gguf(shards[0])


def test_only_a_split_model_can_be_joined(tmp_path: Path) -> None:
    with pytest.raises(GGUFError, match="is not one file of a split model"):
        join(small_model(tmp_path), tmp_path / "j.gguf")


def test_the_output_is_none_of_the_inputs(shards: list[Path]) -> None:
    before = digest(shards)
    with pytest.raises(OutputError, match="the output is also an input"):
        join(shards[0], shards[2])
    with pytest.raises(OutputError, match="the output is also an input"):
        split(shards[0], shards[0].parent / "o", SplitLimits(max_tensors=3))
    assert digest(shards) == before


@pytest.mark.parametrize(("text", "size"), [("500M", 500_000_000), ("4G", 4_000_000_000), ("20k", 20_000)])
def test_a_limit_is_read_in_decimal_units(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "4", "0G", "-1G", "1.5G", "4GB", "４G"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size such as 500M or 4G"):
        parse_size(text)


def test_limits_that_are_none() -> None:
    with pytest.raises(ValueError, match="at most one limit"):
        SplitLimits(max_tensors=1, max_bytes=1)
    with pytest.raises(ValueError, match="of 1 or more"):
        SplitLimits(max_tensors=0)
