"""A file mapped for reading, opened so that anything wrong with it is one sentence."""

from __future__ import annotations

import mmap
import os
import stat
import weakref
from pathlib import Path

import numpy as np

from loragraft import _native
from loragraft.errors import FormatError
from loragraft.system import interrupts


def map_file(path: Path, error: type[FormatError]) -> mmap.mmap:
    """The bytes of the regular file at `path`, read-only.

    The mapping lives as long as a view of it does. Raises `error` for a file that is missing, unreadable, empty, or
    not a regular file (a pipe would block for ever, a device has no length).
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise error(path, "is a folder", expected="a file")
        if not stat.S_ISREG(mode):
            raise error(path, "is not a regular file")
        descriptor = os.open(path, os.O_RDONLY)
        try:
            if os.fstat(descriptor).st_size == 0:
                raise error(path, "the file is empty")
            return _watched(path, mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ))
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        raise error(path, "no such file") from None
    except (OSError, ValueError) as problem:  # ValueError: a path with a NUL in it
        reason = problem.strerror if isinstance(problem, OSError) else str(problem)
        raise error(path, f"cannot be read: {reason}") from None


_paths: dict[int, Path] = {}


def _watched(path: Path, mapping: mmap.mmap) -> mmap.mmap:
    """`mapping`, guarded against a file that becomes shorter, where the process's signals are ours."""
    if interrupts.installed():
        _native.guard_mappings()
        slot = _native.watch_mapping(np.frombuffer(mapping, np.uint8))
        if slot >= 0:
            _paths[slot] = path
            weakref.finalize(mapping, _native.forget_mapping, slot).atexit = False
    return mapping


def check_intact() -> None:
    """Raises `FormatError` if a part of a guarded file could not be read when it was wanted, and zeros were read
    instead: to be asked before anything is made of what was read."""
    slot = _native.damaged_mapping()
    if slot >= 0:
        raise FormatError(
            _paths[slot], "became shorter, or could not be read, while it was in use", hint="get it anew"
        )


def prefetch(mapping: mmap.mmap, start: int, stop: int) -> None:
    """Have the system read bytes [start, stop) ahead."""
    first = start // mmap.PAGESIZE * mmap.PAGESIZE
    mapping.madvise(mmap.MADV_WILLNEED, first, stop - first)


def release(mapping: mmap.mmap, start: int, stop: int) -> None:
    """Drop the whole pages within bytes [start, stop) from this process's memory.

    They stay in the system's cache, and are mapped again when they are touched: only their cost is given back.
    """
    first, last = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, stop // mmap.PAGESIZE * mmap.PAGESIZE
    if first < last:
        mapping.madvise(mmap.MADV_DONTNEED, first, last - first)
