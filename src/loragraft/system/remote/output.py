"""An object in a bucket that appears whole or not at all: a multipart upload that is completed at the end.

The parts of an upload follow one another, while the pass writes in almost the file's order. What comes too early waits:
in memory, and beyond some of that in an unnamed file. A killed run leaves an upload that was never completed, which no
reader sees, and which the bucket's own rules remove.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from loragraft.errors import LoragraftError, OutputError
from loragraft.system.remote.paths import RemotePath
from loragraft.system.remote.store import brief
from loragraft.system.remote.stores import store_of
from loragraft.system.whole import WholeOutput

#: Bytes of a part at least, and how many parts an upload may have (S3's bounds are 5 MiB and 10,000).
PART, MAX_PARTS = 1 << 24, 9000
#: Bytes that wait for their turn in memory.
WAITING = 1 << 28


def check_writable(path: RemotePath, inputs: Iterable[Path | str] = ()) -> None:
    """Raises `OutputError` for a URL that cannot be written, or that the run reads."""
    if path.scheme not in ("s3", "gs"):
        raise OutputError(
            path,
            "cannot be written piece by piece",
            expected="s3://BUCKET/KEY or gs://BUCKET/KEY",
            hint=f"write a file here, and add --push hf://{'/'.join(path.parts[1:3])}"
            if path.scheme == "hf"
            else None,
        )
    if len(path.parts) < 3:
        raise OutputError(path, "names no object", expected=f"{path.scheme}://BUCKET/KEY")
    if str(path) in {str(source) for source in inputs if isinstance(source, RemotePath)}:
        raise OutputError(path, "the output is also an input", hint="choose another name")
    is_folder = False
    with contextlib.suppress(LoragraftError):  # who may write need not be allowed to look
        is_folder = path.is_dir()
    if is_folder:
        raise OutputError(
            path,
            "is a folder",
            expected="the name of an object to write",
            hint=f"name one in it: -o {path / 'model.gguf'}",
        )


class RemoteOutput(WholeOutput):
    """`size` bytes that will become the object at `path`: see `system.output.OutputFile`, whose methods these are."""

    resumed = False

    def __init__(self, path: RemotePath, size: int, *, inputs: Iterable[Path | str] = ()) -> None:
        check_writable(path, inputs)
        self.path, self.size = path, size
        self._store = store_of(path)
        self._changed = threading.Condition()
        self._next = 0  # all bytes before are on their way
        self._early: dict[int, bytes | int] = {}  # by offset: bytes, or how many in the spill
        self._in_memory = 0
        self._spill: IO[bytes] | None = None
        self._queue: deque[bytes] = deque()
        self._queued = 0
        self._problem: BaseException | None = None
        self._sealed = self._done = False
        self._part = max(PART, -(-size // MAX_PARTS))
        try:
            self._stream = self._store.writer(path, self._part)
        except Exception as problem:
            raise self._unwritable(problem) from None
        self._thread = threading.Thread(target=self._send, name="loragraft-upload", daemon=True)
        self._thread.start()

    def write_at(self, offset: int, data: Any) -> None:
        """Write `data` (any C-contiguous buffer) at byte `offset`. Safe from any thread."""
        view = memoryview(data)
        piece = bytes(view.cast("B")) if view.nbytes else b""
        if offset < self._next or offset + len(piece) > self.size:
            raise ValueError(f"bytes [{offset}, {offset + len(piece)}) of an object of {self.size}")
        if not piece:
            return
        with self._changed:
            while self._queued > 2 * self._part and self._problem is None:
                self._changed.wait()
            self._check()
            if offset != self._next:
                self._set_aside(offset, piece)
                return
            self._enqueue(piece)
            while (early := self._early.pop(self._next, None)) is not None:
                self._enqueue(self._taken_up(early))

    def read_at(self, offset: int, count: int) -> bytes:
        raise OutputError(self.path, "what was sent cannot be read back")

    def seal(self) -> None:
        """Have everything there but the name."""
        if self._sealed:
            return
        with self._changed:
            while self._queued and self._problem is None:
                self._changed.wait()
            self._check()
            if self._next != self.size:
                raise OutputError(self.path, "ends early", found=f"{self._next} bytes", expected=self.size)
            self._sealed = True
            self._changed.notify_all()
        self._thread.join()
        try:
            self._stream.close()  # sends the last part
        except Exception as problem:
            raise self._unwritable(problem) from None

    def commit(self) -> None:
        """Give it its name, sealed first."""
        self.seal()
        try:
            self._stream.commit()
        except Exception as problem:
            raise self._unwritable(problem) from None
        self._done = True
        self._store.forget()

    def discard(self) -> None:
        """Abort the upload, unless it was committed."""
        if self._done:
            return
        self._done = True
        with self._changed:
            self._problem = self._problem or OutputError(self.path, "was aborted")
            self._changed.notify_all()
        self._thread.join()
        with contextlib.suppress(Exception):  # whatever it is: nothing has appeared
            self._stream.discard()
        self._stream.closed = True  # else its end would send what is left

    # ---- under the lock ----

    def _enqueue(self, piece: bytes) -> None:
        self._queue.append(piece)
        self._queued += len(piece)
        self._next += len(piece)
        self._changed.notify_all()

    def _set_aside(self, offset: int, piece: bytes) -> None:
        if self._in_memory + len(piece) <= WAITING:
            self._in_memory += len(piece)
            self._early[offset] = piece
            return
        if self._spill is None:
            self._spill = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as this object
        try:
            os.pwrite(self._spill.fileno(), piece, offset)
        except OSError as problem:
            raise OutputError(
                self.path, f"no room for data that waits to be uploaded: {problem.strerror}"
            ) from None
        self._early[offset] = len(piece)

    def _taken_up(self, early: bytes | int) -> bytes:
        if isinstance(early, bytes):
            self._in_memory -= len(early)
            return early
        assert self._spill is not None
        return os.pread(self._spill.fileno(), early, self._next)

    def _check(self) -> None:
        if self._problem is not None:
            raise self._unwritable(self._problem)

    def _unwritable(self, problem: BaseException) -> OutputError:
        if isinstance(problem, OutputError):
            return problem
        from loragraft.system.remote.buckets import credentials_hint

        hint = credentials_hint(self.path, problem)
        return OutputError(self.path, f"cannot be written: {brief(problem)}", hint=hint)

    # ---- in the thread ----

    def _send(self) -> None:
        while True:
            with self._changed:
                while not self._queue and not self._sealed and self._problem is None:
                    self._changed.wait()
                if self._problem is not None or not self._queue:
                    return
                piece = self._queue.popleft()
            try:
                self._stream.write(piece)
                problem = None
            except BaseException as raised:
                problem = raised
            with self._changed:
                self._queued -= len(piece)
                self._problem = self._problem or problem
                self._changed.notify_all()
