"""Files and folders, by the names that people and files give them."""

from __future__ import annotations

import errno
import os
from os import PathLike
from pathlib import Path

from loragraft.errors import LoragraftError


def files_of(path: Path) -> list[Path]:
    """The files that reading `path` reads: those in a folder, or itself."""
    return sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]


def named_path(given: str | PathLike[str], error: type[LoragraftError] = LoragraftError) -> Path:
    """`given` as a path that may be asked for. Raises `error` for what no file can be called: a NUL or half of a
    surrogate pair in it, too many characters, nothing at all."""
    if not isinstance(given, str | PathLike) or not isinstance(os.fspath(given), str):
        raise error("path", "is no name of a file", found=repr(given)[:80], expected="a string or a Path")
    if not os.fspath(given):
        raise error("path", "is empty", expected="the name of a file or a folder")
    path = Path(given)
    try:
        os.lstat(path)
    except OSError as problem:
        if problem.errno not in (errno.ENOENT, errno.ENOTDIR):
            raise error(path, f"cannot be read: {problem.strerror}") from None
    except ValueError as problem:
        raise error(path, f"is no name of a file: {problem}") from None
    return path
