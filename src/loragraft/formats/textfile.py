"""Files that are read whole: regular ones alone, and no more of them than was thought of.

A pipe blocks for ever, and a device has no end; a link to either may lie in a stranger's folder.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from loragraft.errors import LoragraftError

#: Texts to measure on, and prompts.
MAX_TEXT = 1 << 28
#: What is written by hand, or nearly: rules of types, chat templates.
MAX_SMALL = 1 << 22


def read_file(path: Path, limit: int, error: type[LoragraftError] = LoragraftError) -> bytes:
    """The bytes of the regular file at `path`. Raises `error` for anything else, and for more than `limit` bytes."""
    data = read_start(path, limit + 1, error)
    if len(data) > limit:
        raise error(path, "the file is too large", expected=f"at most {limit} bytes")
    return data


def read_start(path: Path, limit: int, error: type[LoragraftError] = LoragraftError) -> bytes:
    """Its first `limit` bytes, or all of them if it is shorter."""
    try:
        # Without waiting: a pipe without a writer would block before one can see that it is a pipe.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            mode = os.fstat(descriptor).st_mode
            if stat.S_ISDIR(mode):
                raise error(path, "is a folder", expected="a file")
            if not stat.S_ISREG(mode):
                raise error(path, "is not a regular file")
            parts: list[bytes] = []
            left = limit
            while left and (part := file.read(min(left, 1 << 24))):
                parts.append(part)
                left -= len(part)
            return b"".join(parts)
    except FileNotFoundError:
        raise error(path, "no such file") from None
    except (
        OSError,
        ValueError,
    ) as problem:  # ValueError: a path with a NUL, or half of a surrogate pair, in it
        reason = problem.strerror if isinstance(problem, OSError) else str(problem)
        raise error(path, f"cannot be read: {reason}") from None


def decoded(data: bytes, subject: Path | str, error: type[LoragraftError] = LoragraftError) -> str:
    """`data` as UTF-8. Raises `error`, naming the first byte that is none."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as problem:
        found = f"byte {data[problem.start]:#04x} at {problem.start}"
        raise error(subject, "not UTF-8 text", found=found) from None
