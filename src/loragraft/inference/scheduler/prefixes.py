"""Prefixes whose states are kept: a prompt that begins like an earlier one under the same adapters need not be read
again.

States depend on every token before and on what the adapters computed, so an entry is found by both: the tokens, and
the contents (not the names) of the adapters with their strengths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from loragraft.arrays import Ids

AdapterKey = tuple[tuple[str, float], ...]
"""(sha256 of the adapter, strength) of each, in order."""


@dataclass(slots=True, eq=False)
class _Entry:
    key: AdapterKey
    tokens: Ids
    sequence: int
    used: int


def common_prefix(a: Ids, b: Ids) -> int:
    """How many tokens two sequences begin with in common."""
    n = min(len(a), len(b))
    differing = np.flatnonzero(a[:n] != b[:n])
    return int(differing[0]) if len(differing) else n


class PrefixCache:
    """Finished sequences, the least recently used forgotten first. `close` gives a sequence's states back. Those that
    cannot be taken back (`rewinds` false: `Program.rewinds`) serve prompts that go on where they end, and no others."""

    def __init__(self, close: Callable[[int], None], most: int = 256, *, rewinds: bool = True) -> None:
        self._close = close
        self._most = most
        self._rewinds = rewinds
        self._entries: list[_Entry] = []
        self._clock = 0

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, key: AdapterKey, tokens: Ids, sequence: int) -> None:
        """Keep `sequence`, whose states are those of `tokens`. An entry that it contains is forgotten."""
        for entry in [e for e in self._entries if e.key == key]:
            shared = common_prefix(entry.tokens, tokens)
            if not self._rewinds and len(entry.tokens) != len(tokens):
                continue  # neither does for the other
            if shared == len(tokens):  # known already
                entry.used = self._tick()
                self._close(sequence)
                return
            if shared == len(entry.tokens):
                self._forget(entry)
        self._entries.append(_Entry(key, tokens, sequence, self._tick()))
        while len(self._entries) > self._most:
            self.forget_oldest()

    def longest(self, key: AdapterKey, tokens: Ids) -> Iterator[tuple[int, int]]:
        """(sequence, shared length) of entries that begin like `tokens`, the longest first."""
        found = [(common_prefix(e.tokens, tokens), e) for e in self._entries if e.key == key]
        for shared, entry in sorted(found, key=lambda pair: -pair[0]):
            if shared and (self._rewinds or shared == len(entry.tokens)):
                entry.used = self._tick()
                yield entry.sequence, shared

    def forget_oldest(self) -> bool:
        """Give the states of the least recently used entry back; False if there is none."""
        if not self._entries:
            return False
        self._forget(min(self._entries, key=lambda entry: entry.used))
        return True

    def clear(self) -> None:
        while self.forget_oldest():
            pass

    def _forget(self, entry: _Entry) -> None:
        self._entries.remove(entry)
        self._close(entry.sequence)

    def _tick(self) -> int:
        self._clock += 1
        return self._clock
