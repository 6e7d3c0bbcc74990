"""A folder that appears with all its files, or, if something goes wrong, not at all."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from loragraft.errors import OutputError
from loragraft.system.output import is_of, no_space
from loragraft.system.remote.paths import RemotePath


def check_new(folder: Path, *, resume: bool) -> None:
    """Raises OutputError if `folder` holds something, unless that may be what a killed run left, to be continued; or
    if it is a URL."""
    if isinstance(folder, RemotePath):
        raise OutputError(
            folder, "is a URL", expected="a folder on this machine", hint="upload it afterwards"
        )
    if not folder.exists() or (folder.is_dir() and (resume or not any(folder.iterdir()))):
        return
    killed = folder.is_dir() and any(path.suffix == ".partial" for path in folder.iterdir())
    raise OutputError(
        folder,
        "is there already",
        expected="a new or empty folder",
        hint="pass --resume to continue the run that was killed"
        if killed
        else f"choose another name, or remove it: rm -r {folder}",
    )


class NewFolder:
    """Makes `folder` for the files `names`, of `size` bytes, which are written within; an exception removes them.

    With `resume` there may be some of these files already. Raises OutputError for a folder that holds others, and for
    a disk that is too small.
    """

    def __init__(self, folder: Path, names: Sequence[str], *, size: int, resume: bool = False) -> None:
        self._folder, self._size, self._resume = folder, size, resume
        self._names = names
        self._made = False

    def __enter__(self) -> Self:
        check_new(self._folder, resume=self._resume)
        try:
            self._made = not self._folder.exists()
            self._folder.mkdir(parents=True, exist_ok=True)
            strange = sorted(set(self._folder.iterdir()) - set(self._own()))
        except OSError as problem:
            raise OutputError(self._folder, f"cannot be made: {problem.strerror}") from None
        if strange:
            raise OutputError(self._folder, "holds files that this run does not write", found=strange[0].name)
        try:
            self._check_space()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._remove()

    def _own(self) -> list[Path]:
        """What lies there of this run, or of one that was killed."""
        return [
            path for path in self._folder.iterdir() if any(is_of(path.name, name) for name in self._names)
        ]

    def _check_space(self) -> None:
        there = sum(path.stat().st_blocks * 512 for path in self._folder.iterdir())
        free = shutil.disk_usage(self._folder).free
        if self._size - there > free:
            raise no_space(self._folder, self._size - there, free)

    def _remove(self) -> None:
        with contextlib.suppress(OSError):
            for path in self._own():
                path.unlink(missing_ok=True)
            if self._made:
                self._folder.rmdir()
