"""Files that are read whole: regular ones alone, and no more of them than was thought of."""

from __future__ import annotations

import os
from pathlib import Path

from loragraft.errors import FormatError, LoragraftError
from loragraft.system.files import regular_file
from loragraft.system.remote.paths import RemotePath

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
    if isinstance(path, RemotePath):
        from loragraft.system.mapped import map_file  # and with it NumPy: slow to import

        with map_file(path, FormatError) as file:
            return file[:limit]
    with regular_file(path, error) as descriptor:
        parts: list[bytes] = []
        left = limit
        while left and (part := os.read(descriptor, min(left, 1 << 24))):
            parts.append(part)
            left -= len(part)
        return b"".join(parts)


def decoded(data: bytes, subject: Path | str, error: type[LoragraftError] = LoragraftError) -> str:
    """`data` as UTF-8. Raises `error`, naming the first byte that is none."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as problem:
        found = f"byte {data[problem.start]:#04x} at {problem.start}"
        raise error(subject, "not UTF-8 text", found=found) from None
