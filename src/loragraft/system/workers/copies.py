"""A worker that is a copy of this process (`fork`): it starts at once, as all that it needs is imported.

That is safe only where one thread runs: a fork copies the caller alone, and locks that others may hold. With more,
and on systems that do not tell how many there are, `processes` starts a Python of its own.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
from collections.abc import Callable, Collection
from typing import IO

Serve = Callable[[IO[bytes], IO[bytes]], None]
"""What a worker does: it reads what it is asked, and writes what it answers."""


def is_alone() -> bool:
    """Whether this process has one thread, counting those of libraries."""
    try:
        return len(os.listdir("/proc/self/task")) == 1
    except OSError:
        return False


class Copy:
    """As much of `subprocess.Popen` as a crew needs."""

    def __init__(self, serve: Serve, others: Collection[IO[bytes]] = ()) -> None:
        """Raises OSError. `others`: ends of pipes of this process's that a copy may not have: while it did, the process
        at the other end would not see this one's end."""
        asked, self_asks = os.pipe()
        answers, self_answers = os.pipe()
        self.returncode: int | None = None
        ours: tuple[IO[bytes], IO[bytes]] = (os.fdopen(self_asks, "wb", 0), os.fdopen(answers, "rb", 0))
        theirs = os.fdopen(asked, "rb"), os.fdopen(self_answers, "wb")
        # No signal may be handled in the copy as this process handles it: that would unwind the caller's stack there.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            self.pid = os.fork()
            if self.pid == 0:
                _live(serve, *theirs, [*ours, *others])
        except OSError:
            for stream in ours:
                stream.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            for stream in theirs:
                stream.close()
        self.stdin, self.stdout = ours

    def kill(self) -> None:
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        """Its status, as `subprocess` counts, when it has ended."""
        if self.returncode is None:
            try:
                self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            except ChildProcessError:  # this process waits for none of its children: how it ended is lost
                self.returncode = 0
        return self.returncode


def _live(serve: Serve, asked: IO[bytes], answers: IO[bytes], others: Collection[IO[bytes]]) -> None:
    """The copy's whole life: nothing of the caller's runs in it, not even what it would do at its end."""
    status = 1
    try:
        gc.freeze()  # what was garbage at the fork may hold files of the other process
        for stream in others:
            stream.close()
        with open(os.devnull, "rb") as nothing:
            os.dup2(nothing.fileno(), 0)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        serve(asked, answers)
        status = 0
    finally:
        os._exit(status)
