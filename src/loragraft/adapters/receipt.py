"""What became of an adapter: how much of its file was used, how much of that changes something, and what file it was.

A merged GGUF carries it under keys of our own, which other programs pass over: arrays of one entry per adapter, in the
order of merging. Merging into such a file appends to them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from loragraft.adapters.effect import idle_targets
from loragraft.adapters.lora import Adapter
from loragraft.formats.gguf.values import Metadata, Value, ValueType

RECEIPTS = "loragraft.adapters.*"
#: What had quantized the base that its adapters were trained beside, and that they were merged into as floats.
BASE = "loragraft.base.as_trained"
NAMES, SCALES, RANKS, DIGESTS = (f"loragraft.adapters.{key}" for key in ("name", "scale", "rank", "sha256"))


@dataclass(frozen=True, slots=True)
class AdapterReceipt:
    """One adapter, as it was put on a model."""

    path: Path
    name: str
    scale: float
    """The user's factor."""
    found: int
    """Tensors in its files that carry what was trained."""
    tensors: int
    """Those that were used."""
    targets: int
    """Tensors of the base that it has something for."""
    changing: int
    """Those of them that it changes."""
    rank: int
    """The largest of its pairs; 0 without pairs."""
    sha256: str
    """Of its weights' file (of several, one after the other); empty for an adapter that comes from no file."""


def receipt_of(adapter: Adapter, strength: float) -> AdapterReceipt:
    """The receipt of `adapter` at `strength`. Reads its files once more, for the digest."""
    idle = len(idle_targets(adapter)) if strength else len(adapter.targets)
    return AdapterReceipt(
        adapter.path,
        adapter.name or adapter.path.name,
        strength,
        adapter.n_tensors + len(adapter.left_out),
        adapter.n_tensors,
        len(adapter.targets),
        len(adapter.targets) - idle,
        max((pair.rank for pair in adapter.pairs.values()), default=0),
        digest_of(adapter.files),
    )


def receipts_in(metadata: Metadata) -> list[tuple[str, float, int, str]]:
    """Name, scale, rank and sha256 of every adapter that was merged into a model, as its metadata say."""
    names, digests = (_texts(metadata, key) for key in (NAMES, DIGESTS))
    scales, ranks = (_numbers(metadata, key) for key in (SCALES, RANKS))
    if not len(names) == len(digests) == len(scales) == len(ranks):
        return []  # not what we write
    return [(*one[:2], int(one[2]), one[3]) for one in zip(names, scales, ranks, digests, strict=True)]


def without_receipts(metadata: Metadata, left: Sequence[tuple[str, float, int, str]]) -> Metadata:
    """`metadata` that say these receipts alone."""
    plain = {key: value for key, value in metadata.items() if key not in (NAMES, SCALES, RANKS, DIGESTS)}
    return {**plain, **_keys(left)}


def _keys(receipts: Sequence[tuple[str, float, int, str]]) -> Metadata:
    if not receipts:
        return {}
    names, scales, ranks, digests = zip(*receipts, strict=True)
    return {
        NAMES: Value.strings(list(names)),
        SCALES: Value.numbers(ValueType.FLOAT32, list(scales)),
        RANKS: Value.numbers(ValueType.UINT32, list(ranks)),
        DIGESTS: Value.strings(list(digests)),
    }


def digest_of(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest() if files else ""


def receipts_metadata(base: Metadata, receipts: Sequence[AdapterReceipt]) -> Metadata:
    """The keys for a file made of a base with metadata `base`: its own receipts, if it has any, and these."""
    if not receipts:
        return {}
    return _keys([*receipts_in(base), *((one.name, one.scale, one.rank, one.sha256) for one in receipts)])


def _texts(base: Metadata, key: str) -> list[str]:
    data = base[key].data if key in base else []
    return [text for text in data if isinstance(text, str)] if isinstance(data, list) else []


def _numbers(base: Metadata, key: str) -> list[float]:
    data = base[key].data if key in base else []
    return (
        [float(number) for number in data]
        if isinstance(data, np.ndarray) and data.dtype.kind in "iuf"
        else []
    )
