"""One kind of place that holds remote files: what is there, and ranges of their bytes."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from loragraft.errors import OutputError
from loragraft.system.remote.urls import Url

#: Seconds for which what a store said is taken for granted, so that one run does not ask the same over and over.
FRESH = 60.0
#: Files of a repository or names in a folder; more than any model has.
MAX_NAMES = 100_000

_Answer = TypeVar("_Answer")


@dataclass(frozen=True, slots=True)
class Facts:
    """Of one file. `version` is another one when the content is."""

    size: int
    version: str


class Store(ABC):
    """One kind of place. Every method raises LoragraftError for what cannot be reached or may not be read."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], tuple[float, object]] = {}
        self._lock = threading.Lock()

    @abstractmethod
    def facts(self, path: Url) -> Facts | None:
        """Of the file at `path`; None if there is no such file."""

    @abstractmethod
    def children(self, path: Url) -> Collection[str]:
        """Names of what lies in the folder `path`; none if it is not a folder."""

    @abstractmethod
    def read(self, path: Url, facts: Facts, start: int, stop: int) -> bytes | bytearray:
        """Bytes [start, stop), with 0 <= start < stop <= facts.size. Never more than were asked for are held."""

    def writer(self, path: Url, part: int) -> Any:
        """A stream for writing in order, in parts of `part` bytes. `close` sends what is left, `commit` gives the
        object its name, `discard` gives it up. Raises whatever the store's library raises."""
        raise OutputError(path, "cannot be written")

    def local(self, path: Url) -> Path | None:
        """A copy on this machine's disk, if there is one already."""
        return None

    def now(self, path: Url) -> Facts | None:
        """`facts`, asked for anew."""
        self.forget()
        return self.facts(path)

    def forget(self) -> None:
        """Take nothing for granted that was said before."""
        with self._lock:
            self._known.clear()

    def remembered(self, what: str, path: Url, ask: Callable[[], _Answer]) -> _Answer:
        """`ask()`, or what it said a short while ago."""
        key = (what, str(path))
        with self._lock:
            when, answer = self._known.get(key, (-FRESH, None))
        if time.monotonic() - when < FRESH:
            return answer  # type: ignore[return-value]
        made = ask()
        with self._lock:
            self._known[key] = time.monotonic(), made
        return made


def brief(problem: BaseException) -> str:
    """What a library says went wrong, in one line."""
    text = next((line.strip() for line in str(problem).splitlines() if line.strip()), "")
    return text[:300] or type(problem).__name__
