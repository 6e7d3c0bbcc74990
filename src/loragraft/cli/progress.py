"""Progress bars on stderr for `loragraft.progress.Progress`: after a second of work, and only on a terminal."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from loragraft.cli import console

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

DELAY = 1.0  # seconds of work before a bar appears


class Bars:
    """One bar at a time; a piece of work that takes less than `DELAY` never shows one. A note is printed once."""

    def __init__(self, *, bars: bool, notes: bool) -> None:
        self._show = bars
        self._notes = notes
        self._said: set[str] = set()
        self._lock = threading.Lock()  # advance() comes from worker threads
        self._bar: RichProgress | None = None
        self._label, self._total, self._done, self._since = "", 0, 0, 0.0

    def start(self, label: str, total: int) -> None:
        with self._lock:
            self._remove()
            self._label, self._total, self._done, self._since = label, total, 0, time.monotonic()

    def advance(self, done: int) -> None:
        with self._lock:
            self._done += done
            if not self._show:
                return
            if self._bar is None and time.monotonic() - self._since > DELAY and self._done < self._total:
                self._bar = _bar()
                self._bar.add_task(self._label, total=self._total)
                self._bar.start()
            if self._bar is not None:
                self._bar.update(self._bar.task_ids[0], completed=self._done)

    def note(self, message: str) -> None:
        with self._lock:
            if not self._notes or message in self._said:
                return
            self._said.add(message)
            if self._bar is not None:
                self._bar.console.print(console.cell(message), style="dim")
            else:
                console.aside(message)

    def close(self) -> None:
        with self._lock:
            self._remove()

    def _remove(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _bar() -> RichProgress:
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=console.stderr(),
        transient=True,
    )


@contextmanager
def progress() -> Iterator[Bars]:
    """The progress to hand to a verb: ``with progress() as bars: merge(..., progress=bars)``."""
    bars = Bars(bars=sys.stderr.isatty() and not console.is_quiet(), notes=not console.is_quiet())
    try:
        yield bars
    finally:
        bars.close()
