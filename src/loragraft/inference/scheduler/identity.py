"""What an adapter is told apart by: its contents, as they run, and the state of its files on disk."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np

from loragraft.adapters.lora import Adapter
from loragraft.arrays import Floats

Stamp = tuple[tuple[str, int, int, int], ...]
_MOST_FILES = 10_000


def contents_of(adapter: Adapter) -> str:
    """The digest of all that it adds to and multiplies on the base's tensors: the same for adapters that compute the
    same, whatever files they are read from."""
    digest = hashlib.sha256(repr(adapter.invocation).encode())

    def add(facts: object, *arrays: Floats | None) -> None:
        shapes = [None if array is None else (array.shape, array.dtype.str) for array in arrays]
        digest.update(repr((facts, shapes)).encode())
        for array in arrays:
            if array is not None:
                digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)

    for name, pair in sorted(adapter.pairs.items()):
        add((name, pair.scale), pair.a, pair.b, pair.magnitude)
    for name, transform in sorted(adapter.transforms.items()):
        add((name, transform.facts), *transform.arrays)
    return digest.hexdigest()


def stamp_of(path: Path) -> Stamp:
    """Which files are at `path`, a file or a folder, and when each was written last: as long as nothing changes, the
    same."""
    found: list[tuple[str, int, int, int]] = []
    names = [str(path)]
    if path.is_dir():
        walk = os.walk(path)
        names = [os.path.join(folder, name) for folder, _, files in walk for name in files][:_MOST_FILES]
    for name in names:
        try:
            facts = os.stat(name)
        except OSError:
            continue
        found.append((name, facts.st_ino, facts.st_mtime_ns, facts.st_size))
    return tuple(sorted(found))
