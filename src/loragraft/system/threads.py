"""How many threads to use."""

from __future__ import annotations

import os

from loragraft.errors import LoragraftError


def thread_count(threads: int | None) -> int:
    """`threads`, or for None as many as this process has CPUs. Raises LoragraftError for none or fewer."""
    if threads is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if threads < 1:
        raise LoragraftError("threads", "too few", found=threads, expected="at least 1")
    return threads
