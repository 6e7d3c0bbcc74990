"""A file opened for reading, so that anything wrong with it is one sentence: mapped if it lies on this machine, else
read by ranges (`system.remote`)."""

from __future__ import annotations

import functools
import gc
import mmap
import os
import sys
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, ParamSpec, Protocol, Self, TypeVar

import numpy as np
import numpy.typing as npt

from loragraft import _native
from loragraft.errors import FormatError
from loragraft.system.files import regular_file
from loragraft.system.remote.paths import RemotePath

if TYPE_CHECKING:
    from loragraft.system.remote.blocks import RemoteFile

P = ParamSpec("P")
T = TypeVar("T")


class FileBytes(Protocol):
    """The bytes of a file, which are not all in memory."""

    def __len__(self) -> int: ...

    def __getitem__(self, place: slice, /) -> bytes: ...

    def view(self, start: int, count: int) -> npt.NDArray[np.uint8]:
        """`count` bytes from `start` on, uint8 [count], read-only."""

    def prefetch(self, start: int, stop: int) -> None:
        """Bytes [start, stop) will be asked for soon."""

    def release(self, start: int, stop: int) -> None:
        """Bytes [start, stop) will not be asked for again soon."""

    def head(self, most: int) -> mmap.mmap:
        """A buffer of at least the first `most` bytes (or all), of which `fill` says how many are there."""

    def fill(self, head: mmap.mmap, filled: int, needed: int) -> int:
        """Have `needed` bytes of `head` there, of which `filled` are; how many now are."""

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def map_file(path: Path, error: type[FormatError]) -> FileBytes:
    """The bytes of the regular file at `path`, or of what a URL names.

    The mapping lives as long as a view of it does. Raises `error` for a file that is missing, unreadable, empty, or
    not a regular file (a pipe would block for ever, a device has no length).
    """
    if isinstance(path, RemotePath):
        from loragraft.system.remote.blocks import RemoteFile, local_copy

        copy = local_copy(path)
        return RemoteFile.of(path, error) if copy is None else map_file(copy, error)
    with regular_file(path, error) as descriptor:
        if os.fstat(descriptor).st_size == 0:
            raise error(
                path, "the file is empty", hint="take it again: a disk was full, or a copy was cut short"
            )
        mapping = _Mapping(descriptor, 0, access=mmap.ACCESS_READ)
    _watch(path, mapping, error)
    return mapping


class _Mapping(mmap.mmap):
    """A mapping that is no longer watched once it is closed: its addresses will be something else's."""

    unwatch: Callable[[], object] | None = None

    def view(self, start: int, count: int) -> npt.NDArray[np.uint8]:
        return np.frombuffer(self, np.uint8, count, start)

    def prefetch(self, start: int, stop: int) -> None:
        """Have the system read bytes [start, stop) ahead."""
        first = start // mmap.PAGESIZE * mmap.PAGESIZE
        self.madvise(mmap.MADV_WILLNEED, first, stop - first)

    def release(self, start: int, stop: int) -> None:
        """Drop the whole pages within bytes [start, stop) from this process's memory.

        They stay in the system's cache, and are mapped again when they are touched: only their cost is given back.
        """
        first, last = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, stop // mmap.PAGESIZE * mmap.PAGESIZE
        if first < last:
            self.madvise(mmap.MADV_DONTNEED, first, last - first)

    def head(self, most: int) -> mmap.mmap:
        return self

    def fill(self, head: mmap.mmap, filled: int, needed: int) -> int:
        return len(self)

    def close(self) -> None:
        super().close()
        if self.unwatch is not None:
            self.unwatch()

    def __exit__(self, *exception: object) -> None:
        self.close()  # mmap's own way out of a `with` does not call the method above


class _Watched(NamedTuple):
    path: Path
    mapping: weakref.ref[mmap.mmap]


_watched: dict[int, _Watched] = {}


def _watch(path: Path, mapping: _Mapping, error: type[FormatError]) -> None:
    """Guard `mapping` against a file that becomes shorter, which would end the whole process by SIGBUS."""
    _native.guard_mappings()
    slot = _native.watch_mapping(np.frombuffer(mapping, np.uint8))
    if slot < 0:
        raise error(path, "cannot be read: too many files are read at once")
    _watched[slot] = _Watched(path, weakref.ref(mapping))
    mapping.unwatch = finalizer = weakref.finalize(mapping, _forget, slot)
    finalizer.atexit = False


def _forget(slot: int) -> None:
    del _watched[slot]
    _native.forget_mapping(slot)


def check_intact(of: Path | None = None) -> None:
    """Raises `FormatError` if a file in use became shorter, or a part of it could not be read when it was wanted, and
    zeros were read instead: to be asked before anything is made of what was read. With `of`, a model's file or folder,
    for the files of that model alone."""
    for slot, (path, reference) in list(_watched.items()):
        mapping = reference()
        if mapping is None or (of is not None and not _belongs(path, of)):
            continue
        # The rest of a page is zeros without a signal: so the size is looked at too.
        if _native.is_damaged(slot) or mapping.size() < len(mapping):
            raise FormatError(
                path,
                "became shorter, or could not be read, while it was in use",
                hint="get it again",
            )


def _remote_files() -> list[RemoteFile]:
    """Those in use. (Without the module that reads them there are none.)"""
    blocks = sys.modules.get("loragraft.system.remote.blocks")
    return [] if blocks is None else blocks.files_in_use()


def check_unchanged(paths: Iterable[Path]) -> None:
    """Raises `FormatError` if one of `paths` is a remote file in use, and another file has taken its place."""
    asked = {str(path) for path in paths if isinstance(path, RemotePath)}
    if asked and _remote_files():
        gc.collect()  # an earlier run's files may be held by nothing but themselves
    for file in _remote_files():
        if str(file.path) in asked and file.changed():
            raise FormatError(file.path, "changed while it was in use", hint="start again")


def reads_remotely() -> bool:
    """Whether any file in use lies elsewhere."""
    return bool(_remote_files())


def _belongs(path: Path, model: Path) -> bool:
    """Whether `path` is the model's file, in its folder, or beside it as another part of a split one."""
    return model in (path, path.parent) or (path.parent == model.parent and "-of-" in path.name)


def intact(function: Callable[P, T]) -> Callable[P, T]:
    """`function`, whose result is given only if every file in use is whole."""

    @functools.wraps(function)
    def checked(*args: P.args, **options: P.kwargs) -> T:
        result = function(*args, **options)
        check_intact()
        return result

    return checked
