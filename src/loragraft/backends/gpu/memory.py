"""A memory of float32 arrays that grows; what is freed is given out again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np

from loragraft.arrays import Floats


class Memory(ABC):
    """Offsets and sizes are in floats; where they lie is the subclass's matter."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._free: list[tuple[int, int]] = [(0, size)]
        """Offset and floats, in order, none next to another."""
        self._held: dict[int, int] = {}

    def add(self, values: Floats) -> int:
        """Where `values` now lie. Raises UnsupportedError if there is no room."""
        flat = np.ascontiguousarray(values, np.float32).reshape(-1)
        offset = self._take(max(1, len(flat)))
        self._write(offset, flat)
        return offset

    def drop(self, offset: int) -> None:
        self._free = list(_merged(sorted([*self._free, (offset, self._held.pop(offset))])))

    def _take(self, count: int) -> int:
        for place, (offset, size) in enumerate(self._free):
            if size >= count:
                self._free[place : place + 1] = [(offset + count, size - count)] if size > count else []
                self._held[offset] = count
                return offset
        old, self._size = self._size, self._grow(count)
        self._free = list(_merged(sorted([*self._free, (old, self._size - old)])))
        return self._take(count)

    @abstractmethod
    def _write(self, offset: int, values: Floats) -> None: ...

    @abstractmethod
    def _grow(self, count: int) -> int:
        """Make room for at least `count` floats more, with what is held where it is; the floats of all."""


def _merged(ranges: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    start, size = ranges[0]
    for offset, more in ranges[1:]:
        if offset == start + size:
            size += more
        else:
            yield start, size
            start, size = offset, more
    yield start, size
