"""How much memory there is, and giving back what is free."""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path


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
    few threads, in pieces that the next large array may not fit in."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
