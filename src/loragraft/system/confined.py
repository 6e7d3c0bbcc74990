"""What strangers wrote and we must compute, in a process of its own with limits of time and memory.

A chat template or a grammar is a program: nothing in it can count around the system's limits, and what it brings down
is that process alone.
"""

from __future__ import annotations

import atexit
import importlib.util
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loragraft.errors import LoragraftError

#: Seconds until an answer is given up, on a machine with much else to do; processor time is bounded more closely.
PATIENCE = 30.0


class Confined:
    """Asks `program` (see `confined_process.py`), which finds the Python `packages` and little else.

    Its process is started when it is first asked, and anew after one that was ended. Calls from several threads wait
    for each other.
    """

    def __init__(self, program: Path, packages: Sequence[str], what: str) -> None:
        self._program = program
        self._packages = packages
        self._what = what
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        atexit.register(self.close)

    def ask(self, request: Any) -> dict[str, Any]:
        """`{"answer": ...}` of the program, or `{"problem": ...}`: what it raised, or the limit that it met. Raises
        LoragraftError where no process can be started; TypeError, ValueError and RecursionError for a request that JSON
        cannot hold."""
        line = json.dumps(request).encode() + b"\n"
        with self._lock:
            process = self._running()
            try:
                found = _exchange(process, line, time.monotonic() + PATIENCE)
                answer: dict[str, Any] = json.loads(found) if found else {"problem": "it takes too long"}
            except BaseException:
                self._end()  # whatever it would still say is no answer to the next request
                raise
            if not found or "spent" in answer:
                self._end()  # it is gone, or holds memory that the next needs
            return answer

    def close(self) -> None:
        """End the process."""
        self._end()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._owner == os.getpid() and self._process.poll() is None:
            return self._process
        if self._owner == os.getpid():
            self._end()
        self._process, self._owner = self._start(), os.getpid()  # after a fork: the parent's is the parent's
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None and self._owner == os.getpid():
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()

    def _start(self) -> subprocess.Popen[bytes]:
        places = []
        for name in self._packages:
            found = importlib.util.find_spec(name)
            if found is not None and found.origin is not None:
                places.append(str(Path(found.origin).parent.parent))
        child = str(Path(__file__).with_name("confined_process.py"))
        command = [sys.executable or "python3", "-I", "-S", child, str(self._program), *dict.fromkeys(places)]
        try:
            return subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
            )
        except OSError as problem:
            raise LoragraftError(
                self._what, f"no process can be started for it: {problem.strerror}"
            ) from None


def _exchange(process: subprocess.Popen[bytes], request: bytes, until: float) -> bytes:
    """The line that answers `request`; empty if it does not come in time, or the process ended."""
    assert process.stdin is not None
    assert process.stdout is not None
    writes, reads = process.stdin.fileno(), process.stdout.fileno()
    os.set_blocking(writes, False)
    left, parts = memoryview(request), [b""]
    waiting = select.poll()  # `select` knows descriptors up to 1023 alone; a server has more
    waiting.register(reads, select.POLLIN)
    waiting.register(writes, select.POLLOUT)
    while not parts[-1].endswith(b"\n"):
        events = dict(waiting.poll(max(0.0, until - time.monotonic()) * 1000))
        if not events:
            return b""
        if events.get(writes):
            try:
                left = left[os.write(writes, left) :]
            except BrokenPipeError:
                return b""
            if not left:
                waiting.unregister(writes)
        if events.get(reads):
            parts.append(os.read(reads, 1 << 20))
            if not parts[-1]:
                return b""
    return b"".join(parts)
