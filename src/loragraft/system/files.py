"""Files and folders, by the names that people and files give them."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path

from loragraft.errors import LoragraftError
from loragraft.system.remote.paths import RemotePath, as_path
from loragraft.system.remote.urls import SCHEMES

#: A Path made of a URL has lost one of the slashes, or both at its end.
_STRANGE_URL = re.compile(r"([a-z][a-z0-9+.-]+):(?:/+|$)")
_NAMES = {"hf": "ORG/NAME", "s3": "BUCKET/KEY", "gs": "BUCKET/KEY", "http": "HOST/FILE", "https": "HOST/FILE"}


@contextmanager
def regular_file(path: Path, error: type[LoragraftError] = LoragraftError) -> Iterator[int]:
    """A descriptor of the regular file at `path`, to read it. Raises `error` for anything else (a pipe would block for
    ever, a device has no end), and for what fails within."""
    try:
        # Without waiting: a pipe without a writer would block before one can see that it is a pipe.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            mode = os.fstat(descriptor).st_mode
            if stat.S_ISDIR(mode):
                raise error(path, "is a folder", expected="a file")
            if not stat.S_ISREG(mode):
                raise error(path, "is not a regular file")
            yield descriptor
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        if os.path.islink(path):
            raise error(
                path,
                "is a link to a file that is not there",
                found=os.readlink(path),
                hint="the download did not finish, or only a part of the folder was copied: run hf download again",
            ) from None
        raise error(path, "no such file") from None
    except (OSError, ValueError) as problem:  # ValueError: a NUL, or half of a surrogate pair, in the path
        reason = problem.strerror if isinstance(problem, OSError) else str(problem)
        raise error(path, f"cannot be read: {reason}") from None


#: What is read of a folder: configurations, weights, vocabularies, templates, a model card. A GGUF or a picture that
#: lies there is not, so one that a run left there may be written again.
_READ_IN_FOLDERS = {
    ".json",
    ".jsonl",
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".model",
    ".txt",
    ".jinja",
    ".md",
}


def files_of(path: Path) -> list[Path]:
    """The files that reading `path` reads: those in a folder that a reader of folders may open, or itself."""
    if not path.is_dir():
        return [path]
    return sorted(file for file in path.iterdir() if file.suffix in _READ_IN_FOLDERS and file.is_file())


def named_path(given: str | PathLike[str], error: type[LoragraftError] = LoragraftError) -> Path:
    """`given`, a URL or not, as a path that may be asked for. Raises `error` for what no file can be called: a NUL or
    half of a surrogate pair in it, too many characters, nothing at all; and for a URL of a kind that is not read."""
    if not isinstance(given, str | PathLike) or not isinstance(os.fspath(given), str):
        raise error("path", "is not a file name", found=repr(given)[:80], expected="a string or a Path")
    if not os.fspath(given):
        raise error("path", "is empty", expected="the name of a file or a folder")
    path = as_path(given)
    if isinstance(path, RemotePath):
        return path
    try:
        os.lstat(path)
    except OSError as problem:
        if url := _STRANGE_URL.match(os.fspath(given)):
            written = f"{url[1]}://{os.fspath(given)[url.end() :]}"
            if url[1] in SCHEMES:
                expected = f"{url[1]}://{_NAMES[url[1]]}"
                raise error(written, "this URL names nothing", expected=expected) from None
            kinds = ", ".join(f"{scheme}://" for scheme in SCHEMES)
            raise error(written, "URLs of this kind are not read", expected=kinds) from None
        if problem.errno not in (errno.ENOENT, errno.ENOTDIR):
            raise error(path, f"cannot be read: {problem.strerror}") from None
    except ValueError as problem:
        raise error(path, f"is not a file name: {problem}") from None
    return path
