"""How a model is divided over several GGUF files: sizes, metadata and names, as llama-gguf-split does it.

Source: tools/gguf-split of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from loragraft.errors import OutputError
from loragraft.formats.gguf.model import SPLIT_COUNT, SPLIT_KEYS, SPLIT_NO, SPLIT_TENSORS, shard_name
from loragraft.formats.gguf.values import DEFAULT_ALIGNMENT, Metadata, Value
from loragraft.formats.gguf.writer import TensorSpec

#: Of llama-gguf-split, if no limit is given.
DEFAULT_MAX_TENSORS = 128
#: split.count is an unsigned 16-bit number.
MAX_SHARDS = 65535

_UNITS = {"K": 10**3, "M": 10**6, "G": 10**9}


@dataclass(frozen=True, slots=True)
class SplitLimits:
    """What one file may hold at most. At most one of the two limits is given; 128 tensors if none is."""

    max_tensors: int | None = None
    max_bytes: int | None = None
    """Of tensor data; metadata are not counted. A tensor larger than this gets a file of its own."""
    first_without_tensors: bool = False
    """The first file holds the metadata alone."""

    def __post_init__(self) -> None:
        given = [limit for limit in (self.max_tensors, self.max_bytes) if limit is not None]
        if len(given) > 1 or any(limit < 1 for limit in given):
            raise ValueError("give at most one limit, of 1 or more")


def parse_size(text: str) -> int:
    """The bytes of `500M` or `4G` (decimal units, as llama-gguf-split takes them). Raises `ValueError`."""
    number, unit = text[:-1], text[-1:].upper()
    if unit not in _UNITS or not number.isascii() or not number.isdigit() or int(number) == 0:
        raise ValueError(f"{text!r} is not a size such as 500M or 4G")
    return int(number) * _UNITS[unit]


def plan_shards(specs: Sequence[TensorSpec], limits: SplitLimits) -> list[list[TensorSpec]]:
    """The tensors of each file, in order."""
    shards: list[list[TensorSpec]] = [[], []] if limits.first_without_tensors else [[]]
    max_tensors = limits.max_tensors or DEFAULT_MAX_TENSORS
    size = 0
    for index, spec in enumerate(specs):
        padded = -(-spec.nbytes // DEFAULT_ALIGNMENT) * DEFAULT_ALIGNMENT
        if limits.max_bytes is None:
            full = index > 0 and index % max_tensors == 0
        else:
            full = bool(shards[-1]) and size + padded > limits.max_bytes
        if full:
            shards.append([])
            size = 0
        size += padded
        shards[-1].append(spec)
    return shards


def shard_metadata(metadata: Mapping[str, Value], number: int, count: int, n_tensors: int) -> Metadata:
    """The metadata of file `number` (from 0) of `count`: the model's own are in the first alone.

    `n_tensors` are those of the whole model.
    """
    own = {key: value for key, value in metadata.items() if key not in SPLIT_KEYS} if number == 0 else {}
    return own | {
        SPLIT_NO: Value.u16(number),
        SPLIT_TENSORS: Value.i32(n_tensors),
        SPLIT_COUNT: Value.u16(count),
    }


def joined_metadata(metadata: Mapping[str, Value]) -> Metadata:
    """The metadata of the joined file, from the first file's: marked as split into none."""
    rest = {key: value for key, value in metadata.items() if key != SPLIT_COUNT}
    return rest | {SPLIT_COUNT: Value.u16(0)}


def shard_paths(output: Path, count: int) -> list[Path]:
    """`NAME-00001-of-0000N.gguf` and so on, for an output called NAME or NAME.gguf. Raises `OutputError`."""
    if count > MAX_SHARDS:
        raise OutputError(
            output,
            "too many files",
            found=count,
            expected=f"at most {MAX_SHARDS}",
            hint="raise the limit per file",
        )
    prefix = output.name.removesuffix(".gguf")
    return [output.with_name(shard_name(prefix, number, count)) for number in range(count)]
