"""How many threads to use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from loragraft.errors import LoragraftError

#: A slip of the hand beyond that: each takes memory for its stack and its buffers.
MAX_THREADS = 1024


def thread_count(threads: int | None) -> int:
    """`threads`, or for None as many as this process has CPUs. Raises LoragraftError below 1, above `MAX_THREADS`."""
    if threads is None:
        found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(found, MAX_THREADS)
    if not 1 <= threads <= MAX_THREADS:
        problem = "too few" if threads < 1 else "too many"
        raise LoragraftError("threads", problem, found=threads, expected=f"1 to {MAX_THREADS}")
    return threads


@contextmanager
def starting(threads: int) -> Iterator[None]:
    """Where threads are started: raises LoragraftError if the system will not start so many."""
    try:
        yield
    except RuntimeError as problem:  # Python's own, and what the native core's std::system_error becomes
        if "start new thread" not in str(problem) and "Resource temporarily unavailable" not in str(problem):
            raise
        raise LoragraftError(
            "threads", "the system will not start so many", found=threads, hint="ask for fewer (--threads)"
        ) from None


@contextmanager
def thread_pool(threads: int) -> Iterator[ThreadPoolExecutor]:
    """A pool of `threads`, which are waited for at the end. Raises LoragraftError as `starting` does."""
    with starting(threads), ThreadPoolExecutor(threads, thread_name_prefix="loragraft") as pool:
        yield pool
