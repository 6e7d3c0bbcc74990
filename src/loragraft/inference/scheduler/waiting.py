"""Requests that wait, in a line for each choice of adapters: the lines take turns, so that one popular adapter does not
starve the others."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator

from loragraft.inference.scheduler.job import Job


class Waiting:
    """Jobs join from any thread, under `lock`; the scheduler's alone takes them."""

    def __init__(self, lock: threading.Condition) -> None:
        self._lock = lock
        self._lines: dict[tuple[str, ...], deque[Job]] = {}

    def __len__(self) -> int:
        return sum(len(line) for line in list(self._lines.values()))

    def add(self, job: Job) -> None:
        """Put `job` at the end of its line; the caller holds the lock."""
        self._lines.setdefault(job.adapters, deque()).append(job)

    def remove(self, job: Job) -> None:
        """Take `job` out, if it waits."""
        with self._lock:
            line = self._lines.get(job.adapters)
            if line is not None and job in line:
                line.remove(job)

    def take(self, job: Job) -> None:
        """Take out the first of its line, which becomes the last to have its turn."""
        with self._lock:
            first = self._lines[job.adapters].popleft()
            assert first is job
            self._lines[job.adapters] = self._lines.pop(job.adapters)

    def firsts(self) -> Iterator[Job]:
        """The first of each line, in turn."""
        for adapters in list(self._lines):
            with self._lock:
                line = self._lines[adapters]
                job = line[0] if line else None
                if job is None:
                    del self._lines[adapters]
            if job is not None:
                yield job
