"""What a run has written so far, kept beside the temporary file, so that a killed run can be continued.

A line is added after a chunk's bytes were handed to the system, which keeps them however the process ends. It does not
if the whole machine stops: so the journal carries the kernel's boot identifier, and one of an earlier boot counts for
nothing. A line carries its own checksum: one that was damaged, or cut off, counts for nothing either.
"""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path

from loragraft.errors import OutputError
from loragraft.streaming.steps import Span

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """The running kernel's identifier; where there is none, one that never repeats."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return os.urandom(16).hex()


class Journal:
    """The journal at `path` of the run that `plan` (a digest of everything that decides the output) describes.

    With `resume`, the lines of an earlier run with the same plan are taken over as `done`; else they go.
    """

    def __init__(self, path: Path, plan: str, *, resume: bool) -> None:
        self.path = path
        head = json.dumps({"plan": plan, "boot": boot_id()})
        self.done: Mapping[str, list[Span]] = _read(path, head) if resume else {}
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        flags |= 0 if resume else os.O_EXCL
        try:
            self._fd = os.open(path, flags | (0 if self.done else os.O_TRUNC), 0o666)
            if not self.done:
                os.write(self._fd, f"{head}\n".encode())
        except OSError as problem:
            raise OutputError(path, f"cannot be written: {problem.strerror}") from None

    def add(self, name: str, start: int, stop: int) -> None:
        """Rows [start, stop) of tensor `name` are written. Safe from any thread (one write of one line)."""
        try:
            os.write(self._fd, _line(name, start, stop))
        except OSError as problem:
            raise OutputError(self.path, f"cannot be written: {problem.strerror}") from None

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self._fd)


def _line(name: str, start: int, stop: int) -> bytes:
    text = json.dumps([name, start, stop])
    return f"{text} {zlib.crc32(text.encode()):08x}\n".encode()


def _read(path: Path, head: str) -> dict[str, list[Span]]:
    """The spans by tensor name, none twice, or nothing if the journal is another plan's or another boot's."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError:
        return {}
    if lines[0] != head.encode():
        return {}
    done: dict[str, set[Span]] = {}
    for line in lines[1:-1]:  # what follows the last line break was cut off
        try:
            entry = json.loads(line[:-9])
        except (ValueError, RecursionError):
            continue  # a line cut off by the kill, with another appended to it by the next run
        match entry:
            case [str() as name, int() as start, int() as stop] if 0 <= start < stop:
                if _line(name, start, stop) == line + b"\n":
                    done.setdefault(name, set()).add((start, stop))
    return {name: sorted(spans) for name, spans in done.items()}
