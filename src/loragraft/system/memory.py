"""How much memory there is, and giving back what is free."""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path

#: Free memory that `give_back` leaves alone where arrays are kept: what a layer of a small model goes through.
KEPT = 512 << 20
#: Of larger arrays `keep_arrays` lets the memory go: they are few, and what they leave is filled by nothing else.
ARRAY = 64 << 20

#: glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_keeping = False


class _Counts(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def available_memory() -> int | None:
    """Bytes that could be had without swapping; None where the system does not tell."""
    try:
        found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text())
        if found is not None:
            return 1024 * int(found[1])
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (OSError, ValueError, AttributeError):
        return None


def give_back() -> None:
    """Have the C library give free memory back to the system, where it would keep it: glibc keeps up to 64 MB for every
    few threads, in pieces that the next large array may not fit in. After `keep_arrays`, only if it is much."""
    library = ctypes.CDLL(None)
    trim, counts = getattr(library, "malloc_trim", None), getattr(library, "mallinfo2", None)
    if trim is None:
        return
    if _keeping and counts is not None:
        counts.restype = _Counts
        if counts().fordblks <= KEPT:
            return
    trim(0)


def keep_arrays() -> bool:
    """Have the C library keep the memory of arrays up to `ARRAY` that are freed, for those that follow; whether it can.

    Work that goes layer by layer makes arrays of the same sizes again and again. glibc has the system take each of them
    back and hand out another one, page by page, all zeroed: a seventh of the processor time of a calibration. It also
    has every thread keep memory of its own; in one arena, threads get what others are done with.

    For a process of our own: it is for good, and for all threads.
    """
    global _keeping
    choose = getattr(ctypes.CDLL(None), "mallopt", None)
    wanted = ((_ARENA_MAX, 1), (_MMAP_THRESHOLD, ARRAY), (_TRIM_THRESHOLD, KEPT))
    _keeping = choose is not None and all(choose(name, value) for name, value in wanted)
    return _keeping
