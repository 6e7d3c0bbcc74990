"""Which pages of the pool hold the keys and values of which sequence. Sequences that share a beginning share its pages,
until one of them writes in the last, partly filled one: then it gets a copy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count

from loragraft.backends.batch import Run
from loragraft.errors import PoolError
from loragraft.units import bytes_text

PAGE = 16
"""Tokens of a page; also in webgpu/kernels/pages.wgsl."""


@dataclass(slots=True)
class Growth:
    """What a pass needs: `tables` the pages of its sequences as they will be, `copies` (from, to) to make before it."""

    tables: dict[int, list[int]]
    copies: list[tuple[int, int]] = field(default_factory=list)
    taken: list[int] = field(default_factory=list)
    left: list[int] = field(default_factory=list)
    """Shared pages that a sequence no longer holds, as it has a copy."""


class Pages:
    """Page numbers by sequence; the pool itself is elsewhere."""

    def __init__(self) -> None:
        self._tables: dict[int, list[int]] = {}
        self._users: list[int] = []  # of each page
        self._free: list[int] = []
        self._numbers = count()

    @property
    def pages(self) -> int:
        """How many the pool must have room for."""
        return len(self._users)

    @property
    def used(self) -> int:
        return len(self._users) - len(self._free)

    def open(self) -> int:
        sequence = next(self._numbers)
        self._tables[sequence] = []
        return sequence

    def fork(self, sequence: int, length: int) -> int:
        fork = next(self._numbers)
        self._tables[fork] = self._tables[sequence][: -(-length // PAGE)]
        for page in self._tables[fork]:
            self._users[page] += 1
        return fork

    def truncate(self, sequence: int, length: int) -> None:
        table = self._tables[sequence]
        kept = -(-length // PAGE)
        self._leave(table[kept:])
        del table[kept:]

    def close(self, sequence: int) -> None:
        self._leave(self._tables.pop(sequence))

    def grow(self, runs: Mapping[Run, tuple[int, int]], limit: int | None, page_bytes: int) -> Growth:
        """Pages for the tokens [start, stop) of each run's sequence. Nothing is changed but the pages taken, until
        `commit` or `abandon`. Raises PoolError for more than `limit` pages, each of `page_bytes`."""
        used = self.used + sum(self._needed(run, *tokens) for run, tokens in runs.items())
        if limit is not None and used > limit:
            raise PoolError(
                "keys and values",
                "no room",
                found=bytes_text(used * page_bytes),
                expected=f"up to {bytes_text(limit * page_bytes)}",
                hint="close a sequence or raise the bound",
            )
        growth = Growth({})
        for run, (start, stop) in runs.items():
            table = list(self._tables[run.sequence])
            last = start // PAGE
            if self._is_shared(run, start):
                own = self._take(growth)
                growth.copies.append((table[last], own))
                growth.left.append(table[last])
                table[last] = own
            while len(table) * PAGE < stop:
                table.append(self._take(growth))
            growth.tables[run.sequence] = table
        return growth

    def commit(self, growth: Growth) -> None:
        self._tables |= growth.tables
        self._leave(growth.left)

    def abandon(self, growth: Growth) -> None:
        self._leave(growth.taken)

    def _needed(self, run: Run, start: int, stop: int) -> int:
        return -(-stop // PAGE) - len(self._tables[run.sequence]) + self._is_shared(run, start)

    def _is_shared(self, run: Run, start: int) -> bool:
        """Whether the next token comes into a page that another sequence holds as well."""
        return start % PAGE != 0 and self._users[self._tables[run.sequence][start // PAGE]] > 1

    def _take(self, growth: Growth) -> int:
        if self._free:
            page = heappop(self._free)
        else:
            page = len(self._users)
            self._users.append(0)
        self._users[page] = 1
        growth.taken.append(page)
        return page

    def _leave(self, pages: list[int]) -> None:
        for page in pages:
            self._users[page] -= 1
            if not self._users[page]:
                heappush(self._free, page)
