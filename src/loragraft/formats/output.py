"""A file that appears whole or not at all.

It is written under a temporary name beside the target, flushed, then renamed onto the target. An exception or Ctrl-C
removes it; a killed process leaves it, and `resume` takes it up again. The temporary name is fixed and locked, so two
runs cannot write the same target at once.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from loragraft import _native
from loragraft.errors import OutputError
from loragraft.formats.mapped import check_intact
from loragraft.system.interrupts import held

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def partial_path(target: Path) -> Path:
    """What a file is called while it is written."""
    return target.with_name(f".{target.name}.partial")


def journal_path(target: Path) -> Path:
    """Where notes of what is written lie, beside it."""
    return target.with_name(f".{target.name}.partial.journal")


class OutputFile:
    """`size` bytes that will become the file at `path`; any thread may write any part of them.

    `inputs` are files that the run reads: the target must be none of them. With `resume`, what an earlier, killed run
    left under the temporary name is kept (`resumed` tells whether there was something of the right size).

    Use as a context manager: a clean exit commits, an exception discards. Raises `OutputError` for a target that is
    an input, a folder, a device, or read-only, and for a disk that has not enough space.
    """

    def __init__(
        self, path: Path | str, size: int, *, inputs: Iterable[Path | str] = (), resume: bool = False
    ) -> None:
        self.path = Path(path)
        self.size = size
        self._target = Path(os.path.realpath(self.path))  # through a link, the file it names is replaced
        self.partial = partial_path(self._target)
        """The temporary name."""
        self.journal = journal_path(self._target)
        """Where a caller may keep notes for resuming; goes when the temporary file goes."""
        self.resumed = False
        self._fd = -1
        self._done = False
        try:
            with held(), self._explained():
                mode = self._check_target(inputs)
                self._fd = self._open_locked()
            with self._explained():
                self._prepare(resume, mode)
        except BaseException:
            if self._fd >= 0:  # else the temporary file, if there is one, is another run's
                self.discard()
            raise

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:  # interrupted before its `with` began
            self.discard()

    @classmethod
    def probe(cls, path: Path | str, inputs: Iterable[Path | str]) -> None:
        """Raise now what writing `path` would raise, for work that takes long before there is something to write."""
        cls(path, 0, inputs=inputs).discard()

    # ---- writing ----

    def fileno(self) -> int:
        """The descriptor, for native code that writes by itself."""
        return self._fd

    def write_at(self, offset: int, data: Any) -> None:
        """Write `data` (any C-contiguous buffer) at byte `offset`. Safe from any thread."""
        view = flat_bytes(data)
        if offset < 0 or offset + len(view) > self.size:
            raise ValueError(f"bytes [{offset}, {offset + len(view)}) of a file of {self.size}")
        with self._explained():
            while view:
                written = os.pwrite(self._fd, view, offset)
                # So that the disk works while we compute, and `seal` finds little left to flush.
                _native.start_writeback(self._fd, offset, written)
                view, offset = view[written:], offset + written

    def seal(self) -> None:
        """Flush to the disk and close; nothing more is written. For several files that are to appear together."""
        if self._fd >= 0:
            check_intact()
            with self._explained():
                os.fsync(self._fd)
            self._close()

    def commit(self) -> None:
        """Rename onto the target, sealed first."""
        with self._explained():
            self.seal()
            os.replace(self.partial, self._target)
            self._done = True
            self.journal.unlink(missing_ok=True)

    def discard(self) -> None:
        """Remove the temporary file, unless it was committed; the target stays as it was."""
        if not self._done:
            self._done = True
            with contextlib.suppress(OSError):
                self.partial.unlink(missing_ok=True)
                self.journal.unlink(missing_ok=True)
        if self._fd >= 0:
            self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.discard()
            return
        try:
            self.commit()
        except BaseException:
            self.discard()
            raise

    # ---- opening ----

    def _check_target(self, inputs: Iterable[Path | str]) -> int | None:
        """Refuse a target that must not be replaced; the permissions of the file that will be replaced, if any."""
        folder = self._target.parent
        if not folder.is_dir():
            raise OutputError(self.path, "its folder does not exist", found=str(folder))
        if not _writable(folder):
            raise OutputError(self.path, "its folder is read-only", found=str(folder))
        try:
            target = self._target.stat()
        except FileNotFoundError:
            return None
        if stat.S_ISDIR(target.st_mode):
            raise OutputError(self.path, "is a folder", expected="the name of a file to write")
        if not stat.S_ISREG(target.st_mode):
            raise OutputError(self.path, "is not a regular file and cannot be replaced")
        for source in inputs:
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.stat(source), target):
                    raise OutputError(
                        self.path,
                        "the output is also an input",
                        found=str(source),
                        hint="choose another name",
                    )
        if not _writable(self._target):
            raise OutputError(self.path, "the existing file is read-only")
        return stat.S_IMODE(target.st_mode)

    def _open_locked(self) -> int:
        """The temporary file's descriptor, held against other runs."""
        while True:
            fd = os.open(self.partial, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                raise OutputError(self.path, "another run is writing it", found=str(self.partial)) from None
            except OSError:
                return fd  # a file system without locks
            # Between open and flock the other run may have renamed or removed what was opened.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(fd), os.stat(self.partial)):
                    return fd
            os.close(fd)

    def _prepare(self, resume: bool, mode: int | None) -> None:
        found = os.fstat(self._fd)
        self.resumed = resume and found.st_size == self.size > 0
        if not self.resumed:
            os.ftruncate(self._fd, 0)
            self.journal.unlink(missing_ok=True)
        allocated = os.fstat(self._fd).st_blocks * 512
        disk = os.statvfs(self.partial.parent)
        free = disk.f_bavail * disk.f_frsize
        if self.size - allocated > free:
            raise OutputError(
                self.path,
                "not enough space on the disk",
                found=f"{free} bytes free",
                expected=f"{self.size - allocated}",
            )
        os.ftruncate(self._fd, self.size)
        problem = _native.reserve(self._fd, self.size) if self.size else 0
        if problem in _NO_SPACE:  # else the file system cannot, and finds the space as it goes
            raise OSError(problem, os.strerror(problem))
        if mode is not None:
            os.fchmod(self._fd, mode)

    def _close(self) -> None:
        os.close(self._fd)
        self._fd = -1

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as problem:
            if problem.errno == errno.ENOSPC:
                raise OutputError(
                    self.path, "not enough space on the disk", expected=f"{self.size} bytes"
                ) from None
            raise OutputError(self.path, f"cannot be written: {problem.strerror}") from None


def flat_bytes(data: Any) -> memoryview:
    """The bytes of any C-contiguous buffer."""
    view = memoryview(data)
    return view.cast("B") if view.nbytes else memoryview(b"")  # cast refuses an axis of length 0


def _writable(path: Path) -> bool:
    """Whether anyone may write `path`, and we may. (For root alone `access` would always say yes.)"""
    return bool(path.stat().st_mode & 0o222) and os.access(path, os.W_OK)
