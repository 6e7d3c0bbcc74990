"""Ranges of remote files, through one bounded cache with read-ahead.

A file is cut into blocks. What is asked for, now or soon, is fetched by a few threads, neighbours in one request. Each
block is fetched once, unless the cache had to give it up: it gives up first what was released, then what was not used
for the longest time.
"""

from __future__ import annotations

import io
import itertools
import mmap
import os
import threading
import weakref
from collections import OrderedDict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from loragraft.errors import FormatError
from loragraft.system.remote.store import Facts
from loragraft.system.remote.stores import store_of
from loragraft.system.remote.urls import Url

#: Bytes of a block, and of a request at most.
BLOCK, REQUEST = 1 << 16, 1 << 22
#: Requests at once.
CONNECTIONS = 16
#: Bytes of blocks that are kept, unless LORAGRAFT_REMOTE_CACHE says how many MiB.
CACHE = 1 << 28
#: Of a header whose length is not known: at least so much at once, and a quarter of what was read of it already.
_HEAD = 1 << 17
#: Seconds that an idle thread waits for more to do.
_IDLE = 5.0

Key = tuple[str, str, int]
_in_use = weakref.WeakSet["RemoteFile"]()
#: Orders the opening and the reading of files.
_clock = itertools.count()


class Blocks:
    """The blocks of all remote files: those that are there, under way, and wanted."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._changed = threading.Condition()
        self._there: OrderedDict[Key, bytes] = OrderedDict()
        self._size = 0
        self._wanted: OrderedDict[Key, RemoteFile] = OrderedDict()
        self._under_way: set[Key] = set()
        self._failed: dict[Key, BaseException] = {}
        self._threads = 0

    def ask_ahead(self, file: RemoteFile, first: int, last: int) -> None:
        """Blocks [first, last) will be asked for soon. More than half of what can be kept is not fetched ahead."""
        with self._changed:
            for block in range(first, last):
                if BLOCK * (len(self._wanted) + len(self._under_way)) > self.capacity // 2:
                    return
                self._want(file, block, soon=False)

    def get(self, file: RemoteFile, first: int, last: int) -> list[bytes]:
        """Blocks [first, last), waited for. Raises what fetching one of them raised."""
        found: dict[int, bytes] = {}
        with self._changed:
            for block in range(first, last):
                self._failed.pop(file.key(block), None)  # of a read-ahead that nobody waited for
            while True:
                for block in range(last - 1, first - 1, -1):  # so that the first becomes the front
                    key = file.key(block)
                    if key in self._there:
                        found[block] = self._there[key]
                        self._there.move_to_end(key)
                    elif key in self._failed:
                        raise self._failed.pop(key)
                    elif block not in found:
                        self._want(file, block, soon=True)
                if len(found) == last - first:
                    return [found[block] for block in range(first, last)]
                self._changed.wait()

    def give_up_first(self, file: RemoteFile, first: int, last: int) -> None:
        with self._changed:
            for block in range(last - 1, first - 1, -1):
                if file.key(block) in self._there:
                    self._there.move_to_end(file.key(block), last=False)

    # ---- under the lock ----

    def _want(self, file: RemoteFile, block: int, *, soon: bool) -> None:
        key = file.key(block)
        if key in self._there or key in self._under_way:
            return
        if key not in self._wanted:
            self._wanted[key] = file
            if self._threads < CONNECTIONS:
                self._threads += 1
                threading.Thread(target=self._work, name="loragraft-fetch", daemon=True).start()
            self._changed.notify_all()
        if soon:
            self._wanted.move_to_end(key, last=False)

    def _take(self) -> tuple[RemoteFile, int, int]:
        """The first wanted block and its wanted neighbours: of what file, from where to where."""
        key, file = self._wanted.popitem(last=False)
        first, last = key[2], key[2] + 1
        while (last - first) * BLOCK < REQUEST and self._wanted.pop(file.key(last), None) is not None:
            last += 1
        self._under_way.update(file.key(block) for block in range(first, last))
        return file, first, last

    def _keep(self, key: Key, data: bytes) -> None:
        self._there[key] = data
        self._size += len(data)
        while self._size > self.capacity and len(self._there) > 1:
            self._size -= len(self._there.popitem(last=False)[1])

    # ---- in the threads ----

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._wanted:
                    if not self._changed.wait(_IDLE) and not self._wanted:
                        self._threads -= 1
                        return
                file, first, last = self._take()
            start, stop = first * BLOCK, min(last * BLOCK, file.facts.size)
            data: bytes | bytearray = b""
            problem = None
            try:
                data = file.fetch(start, stop)
            except BaseException as raised:
                problem = raised
            with self._changed:
                for block in range(first, last):
                    key, at = file.key(block), (block - first) * BLOCK
                    self._under_way.discard(key)
                    if problem is None:
                        self._keep(key, bytes(memoryview(data)[at : at + BLOCK]))
                    else:
                        self._failed[key] = problem
                del file, data
                self._changed.notify_all()


def _capacity() -> int:
    given = os.environ.get("LORAGRAFT_REMOTE_CACHE", "")
    return max(int(given), 16) << 20 if given.isascii() and given.isdigit() and len(given) < 9 else CACHE


BLOCKS = Blocks(_capacity())


class RemoteFile:
    """One remote file, read where it is asked: what a mapping is of a local file (`system.mapped`)."""

    def __init__(self, path: Url, facts: Facts, blocks: Blocks = BLOCKS) -> None:
        self.path, self.facts = path, facts
        self._blocks, self._store = blocks, store_of(path)
        self._filled = 0
        self.opened = self.read = next(_clock)
        _in_use.add(self)

    @classmethod
    def of(cls, path: Url, error: type[FormatError] = FormatError) -> Self:
        """Raises `error` for a file that is missing or empty, LoragraftError for one that cannot be reached."""
        facts = store_of(path).facts(path)
        if facts is None:
            raise error(path, "is a folder" if store_of(path).children(path) else "no such file")
        if facts.size == 0:
            raise error(path, "the file is empty")
        return cls(path, facts)

    def key(self, block: int) -> Key:
        return str(self.path), self.facts.version, block

    def fetch(self, start: int, stop: int) -> bytes | bytearray:
        return self._store.read(self.path, self.facts, start, stop)

    def changed(self) -> bool:
        """Whether another file has taken its place since it was opened."""
        return self._store.now(self.path) != self.facts

    def __len__(self) -> int:
        return self.facts.size

    def __getitem__(self, place: slice) -> bytes:
        start, stop, _ = place.indices(self.facts.size)
        return self.view(start, max(stop - start, 0)).tobytes()

    def view(self, start: int, count: int) -> npt.NDArray[np.uint8]:
        """`count` bytes from `start` on: of one block as it lies in the cache, of more a copy. Read-only."""
        stop = start + count
        if start < 0 or count < 0 or stop > self.facts.size:
            raise IndexError(f"bytes [{start}, {stop}) of {self.path}, which has {self.facts.size}")
        self.read = next(_clock)
        if not count:
            return np.empty(0, np.uint8)
        first, last = start // BLOCK, -(-stop // BLOCK)
        if last - first == 1:
            (data,) = self._blocks.get(self, first, last)
            return np.frombuffer(data, np.uint8, count, start - first * BLOCK)
        out = np.empty(count, np.uint8)
        piece = max(min(REQUEST, self._blocks.capacity // 4) // BLOCK, 1)
        for begin in range(first, last, piece):
            end = min(begin + piece, last)
            self._blocks.ask_ahead(self, end, min(end + 4 * piece, last))
            for block, data in enumerate(self._blocks.get(self, begin, end), begin):
                from_, to = max(start, block * BLOCK), min(stop, block * BLOCK + len(data))
                out[from_ - start : to - start] = np.frombuffer(
                    data, np.uint8, to - from_, from_ - block * BLOCK
                )
        out.flags.writeable = False
        return out

    def prefetch(self, start: int, stop: int) -> None:
        if start < stop:
            self._blocks.ask_ahead(self, start // BLOCK, -(-stop // BLOCK))

    def release(self, start: int, stop: int) -> None:
        """Whole blocks within: what other rows share a block with stays."""
        self._blocks.give_up_first(self, -(-start // BLOCK), stop // BLOCK)

    # ---- headers ----

    def head(self, most: int) -> mmap.mmap:
        """Memory for the first `most` bytes, none of them there yet: see `fill`."""
        return mmap.mmap(-1, min(most, self.facts.size))

    def fill(self, head: mmap.mmap, filled: int, needed: int) -> int:
        """Read on, so that `needed` bytes of `head` are there, of which `filled` are; how many now are."""
        step = max(_HEAD, filled // 4, needed - filled)
        stop = min(-(-(filled + step) // BLOCK) * BLOCK, len(head))
        head[filled:stop] = self[filled:stop]
        return stop

    # ---- as a stream, and as a mapping is used ----

    def stream(self) -> io.RawIOBase:
        return _Stream(self)

    def close(self) -> None:
        """Nothing to do: what was read stays in the cache as long as there is room."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Stream(io.RawIOBase):
    def __init__(self, file: RemoteFile) -> None:
        self._file, self._at = file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: len(self._file)}[whence]
        self._at = max(base + offset, 0)
        return self._at

    def readinto(self, buffer: Any) -> int:
        count = max(min(len(buffer), len(self._file) - self._at), 0)
        buffer[:count] = self._file[self._at : self._at + count]
        self._at += count
        return count


def files_in_use() -> list[RemoteFile]:
    """Those that somebody may still read: of each path the one that was opened last, and what was read since. (What an
    earlier run had opened lives until it is collected.)"""
    files = list(_in_use)
    last: dict[str, int] = {}
    for file in files:
        last[str(file.path)] = max(last.get(str(file.path), 0), file.opened)
    return [file for file in files if file.read >= last[str(file.path)]]


def local_copy(path: Url) -> Path | None:
    """Where the file lies on this machine's disk already, in the hub's cache."""
    return store_of(path).local(path)
