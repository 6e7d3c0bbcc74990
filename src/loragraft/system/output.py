"""A file that appears whole or not at all.

It is written under a temporary name beside the target, flushed, then renamed onto the target. An exception or Ctrl-C
removes it; a killed process leaves it, and `resume` takes it up again. The temporary name cannot be foreseen, and the
file is made anew: what lies in a shared folder under a name that somebody else chose is neither written nor removed. It
is locked, so two runs cannot write the same target at once.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import secrets
import stat
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loragraft import _native
from loragraft.errors import OutputError
from loragraft.system.interrupts import held
from loragraft.system.mapped import check_intact
from loragraft.system.remote.paths import RemotePath, as_path
from loragraft.system.whole import WholeOutput
from loragraft.units import bytes_text

if TYPE_CHECKING:
    from loragraft.system.remote.output import RemoteOutput

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


_TEMPORARY = re.compile(r"\.(?P<stem>.*)\.(?P<token>[0-9a-f]{16})\.partial(?:\.journal)?", re.DOTALL)


def is_of(name: str, target: str) -> bool:
    """Whether `name` is `target`, or what its temporary file or their journal may be called."""
    match = _TEMPORARY.fullmatch(name)
    return name == target or (match is not None and match["stem"] == _stem(target))


class OutputFile(WholeOutput):
    """`size` bytes that will become the file at `path`; any thread may write any part of them.

    `inputs` are files that the run reads: the target must be none of them. With `resume`, what an earlier, killed run
    left under the temporary name is kept (`resumed` tells whether there was something of the right size).

    Use as a context manager: a clean exit commits, an exception discards. Raises `OutputError` for a target that is
    an input, a folder, a device, or read-only, and for a disk without enough space.
    """

    def __init__(
        self, path: Path | str, size: int, *, inputs: Iterable[Path | str] = (), resume: bool = False
    ) -> None:
        self.path = Path(path)
        if isinstance(path, RemotePath):
            raise OutputError(path, "is a URL, and this is written on this machine alone")
        self.size = size
        try:
            self._target = Path(os.path.realpath(self.path))  # through a link, the file it names is replaced
        except ValueError as problem:
            raise OutputError(self.path, f"is not a file name: {problem}") from None
        self.partial = self.journal = self._target  # named when they are made
        """The temporary name; where a caller may keep notes for resuming, which go when the temporary file goes."""
        self.resumed = False
        self._fd = -1
        self._done = False
        try:
            with held(), self._explained():
                inputs = list(inputs)
                mode = self._check_target(inputs)
                with _alone_in(self._target.parent):
                    self._take_up(resume, inputs)
                    if self._fd < 0:
                        self._create(mode)
            with self._explained():
                self._prepare(mode)
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
        if isinstance(path, RemotePath):
            from loragraft.system.remote.output import check_writable

            check_writable(path, inputs)
            return
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

    def read_at(self, offset: int, count: int) -> bytes:
        """The `count` bytes from byte `offset` on, as they were written. Raises OutputError if they are not there."""
        with self._explained():
            data = os.pread(self._fd, count, offset)
            while (
                data
                and len(data) < count
                and (more := os.pread(self._fd, count - len(data), offset + len(data)))
            ):
                data += more
        if len(data) < count:
            raise OutputError(
                self.path, "ends early", found=f"{offset + len(data)} bytes", expected=offset + count
            )
        return data

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
            _flush_folder(self._target.parent)

    def discard(self) -> None:
        """Remove the temporary file, unless it was committed; the target stays as it was."""
        if not self._done:
            self._done = True
            for path in (self.partial, self.journal):
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
        if self._fd >= 0:
            self._close()

    # ---- opening ----

    def _check_target(self, inputs: Iterable[Path | str]) -> int | None:
        """Refuse a target that must not be replaced; the permissions of the file that will be replaced, if any."""
        folder = self._target.parent
        if not folder.is_dir():
            raise OutputError(
                self.path, "its folder does not exist", found=str(folder), hint=f"make it: mkdir -p {folder}"
            )
        if not _writable(folder):
            raise OutputError(self.path, "its folder is read-only", found=str(folder))
        try:
            target = self._target.stat()
        except FileNotFoundError:
            return None
        if stat.S_ISDIR(target.st_mode):
            raise OutputError(
                self.path,
                "is a folder",
                expected="the name of a file to write",
                hint=f"name one in it: -o {self.path / 'model.gguf'}",
            )
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

    def _name(self, token: str) -> None:
        stem = _stem(self._target.name)
        self.partial = self._target.with_name(f".{stem}.{token}.partial")
        self.journal = self._target.with_name(f".{stem}.{token}.partial.journal")

    def _create(self, mode: int | None) -> None:
        self._name(secrets.token_hex(8))
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(self.partial, flags, 0o666 if mode is None else mode)
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _take_up(self, resume: bool, inputs: Sequence[Path | str]) -> None:
        """What killed runs of ours left for this target: it is removed, or with `resume` taken up if it is of the right
        size. Raises `OutputError` if a run is alive."""
        for token in _tokens(self._target):
            self._name(token)
            fd = _open_own(self.partial, inputs)
            if fd is None:
                if not os.path.lexists(self.partial) and _is_own(self.journal):
                    self.journal.unlink(
                        missing_ok=True
                    )  # of a run killed between its renaming and its tidying up
                continue
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                raise OutputError(self.path, "another run is writing it", found=str(self.partial)) from None
            except OSError:
                pass
            if resume and os.fstat(fd).st_size == self.size > 0 and _is_own(self.journal):
                self._fd, self.resumed = fd, True
                return
            os.close(fd)
            self.partial.unlink(missing_ok=True)
            if _is_own(self.journal):
                self.journal.unlink(missing_ok=True)

    def _prepare(self, mode: int | None) -> None:
        allocated = os.fstat(self._fd).st_blocks * 512
        disk = os.statvfs(self.partial.parent)
        free = disk.f_bavail * disk.f_frsize
        if self.size - allocated > free:
            raise no_space(self.path, self.size - allocated, free)
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
                raise no_space(self.path, self.size) from None
            raise OutputError(self.path, f"cannot be written: {problem.strerror}") from None


def no_space(path: Path, needed: int, free: int | None = None) -> OutputError:
    """That `needed` bytes do not fit where `path` is to be; `free`, if known, are there."""
    return OutputError(
        path,
        "not enough space on the disk",
        found=None if free is None else f"{bytes_text(free)} free",
        expected=bytes_text(needed),
        hint="free some, or write elsewhere",
    )


def open_output(
    path: Path | str, size: int, *, inputs: Iterable[Path | str] = (), resume: bool = False
) -> OutputFile | RemoteOutput:
    """An output under way at `path`, on this machine or at a URL. Raises `OutputError`."""
    path = as_path(path)
    if not isinstance(path, RemotePath):
        return OutputFile(path, size, inputs=inputs, resume=resume)
    if resume:
        raise OutputError(path, "a run that writes to a URL cannot be continued", hint="leave out --resume")
    from loragraft.system.remote.output import RemoteOutput

    return RemoteOutput(path, size, inputs=inputs)


#: Bytes that a file system allows in a name; what we add to one; seconds to wait for a folder's turn.
_MAX_NAME, _ADDED, _PATIENCE = 255, 40, 5.0


def _stem(name: str) -> str:
    """`name`, or where it is too long to add something to it, its beginning and what tells it from others."""
    data = os.fsencode(name)
    if len(data) + _ADDED <= _MAX_NAME:
        return name
    return os.fsdecode(data[:180]) + "~" + hashlib.sha256(data).hexdigest()[:16]


def _tokens(target: Path) -> list[str]:
    """Of the temporary files and journals that lie beside `target`."""
    stem = _stem(target.name)
    try:
        found = [match for name in os.listdir(target.parent) if (match := _TEMPORARY.fullmatch(name))]
    except PermissionError:  # a folder that may be written and not be listed
        return []
    return sorted({match["token"] for match in found if match["stem"] == stem})


def _is_own(path: Path) -> bool:
    """Whether it is a regular file of this user's, by this name alone."""
    try:
        found = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and found.st_nlink == 1


def _open_own(path: Path, inputs: Sequence[Path | str]) -> int | None:
    """The descriptor of an own file that is none of `inputs`."""
    if not _is_own(path):
        return None
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    for source in inputs:
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(source), os.fstat(fd)):
                os.close(fd)
                return None
    return fd


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """No other run looks through `folder` meanwhile. (Who may read it can hold its lock: so not without end.)"""
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:
        yield
        return
    try:
        until = time.monotonic() + _PATIENCE
        while time.monotonic() < until:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.01)
            except OSError:
                break
        yield
    finally:
        os.close(fd)


def _flush_folder(folder: Path) -> None:
    """So that a renaming outlasts a stop of the machine, where the file system can say so."""
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:
        return
    try:
        os.fsync(fd)
    except OSError as problem:
        if problem.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EROFS):
            raise
    finally:
        os.close(fd)


def flat_bytes(data: Any) -> memoryview:
    """The bytes of any C-contiguous buffer."""
    view = memoryview(data)
    return view.cast("B") if view.nbytes else memoryview(b"")  # cast refuses an axis of length 0


def _writable(path: Path) -> bool:
    """Whether anyone may write `path`, and we may. (For root alone `access` would always say yes.)"""
    return bool(path.stat().st_mode & 0o222) and os.access(path, os.W_OK)
