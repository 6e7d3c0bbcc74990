"""How many threads to use, and work that is shared out among them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from typing import TypeVar

from loragraft.errors import LoragraftError, check_number
from loragraft.system.interrupts import held

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

#: A slip of the hand beyond that: each takes memory for its stack and its buffers.
MAX_THREADS = 1024


def thread_count(threads: int | None) -> int:
    """`threads`, or for None as many as this process has CPUs. Raises LoragraftError below 1, above `MAX_THREADS`."""
    if threads is None:
        found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(found, MAX_THREADS)
    check_number("threads", threads, int)
    if not 1 <= threads <= MAX_THREADS:
        problem = "too few" if threads < 1 else "too many"
        raise LoragraftError("threads", problem, found=threads, expected=f"1 to {MAX_THREADS}")
    return threads


@contextmanager
def starting(threads: int) -> Iterator[None]:
    """Where threads are started: raises LoragraftError if the system refused to start so many."""
    try:
        yield
    except RuntimeError as problem:  # Python's own, and what the native core's std::system_error becomes
        if "start new thread" not in str(problem) and "Resource temporarily unavailable" not in str(problem):
            raise
        raise LoragraftError(
            "threads", "the system refused to start so many", found=threads, hint="ask for fewer (--threads)"
        ) from None


@contextmanager
def thread_pool(threads: int) -> Iterator[ThreadPoolExecutor]:
    """A pool of `threads`, which are waited for at the end. Raises LoragraftError as `starting` does."""
    with starting(threads), ThreadPoolExecutor(threads, thread_name_prefix="loragraft") as pool:
        yield pool


def in_threads(work: Callable[[_Item], _Result], items: Iterable[_Item], threads: int) -> list[_Result]:
    """What `work` makes of each item, in their order. Items are taken from `items` as threads become free.

    Context variables are the caller's. The first exception, or Ctrl-C, ends it: no further item is taken, and it is
    raised when the others are done. Raises LoragraftError as `starting` does.
    """
    waiting, lock, results = enumerate(items), threading.Lock(), dict[int, _Result]()
    stopped = False

    def run() -> None:
        nonlocal stopped
        try:
            while not stopped:
                with lock:
                    taken = next(waiting, None)
                if taken is None:
                    return
                results[taken[0]] = work(taken[1])
        except BaseException:
            stopped = True
            raise

    with thread_pool(threads) as pool:
        try:
            with held():  # the pool waits at its end for the threads that it knows
                futures = [pool.submit(copy_context().run, run) for _ in range(threads)]
            for future in futures:
                future.result()
        except BaseException:
            stopped = True  # Ctrl-C reaches the waiting thread only
            raise
    return [results[number] for number in range(len(results))]
