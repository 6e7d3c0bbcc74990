"""URLs as paths: `hf://org/name[@revision][/file]`, `s3://`, `gs://`, `http(s)://`.

Whatever takes a path asks it what is there, what lies beside it and what is in it. A `RemotePath` answers the same
questions from a store, so the rest need not know. Nothing is asked of the network until one of them is.
"""

from __future__ import annotations

import fnmatch
import io
import os
import re
import stat
import zlib
from collections.abc import Generator
from os import PathLike
from pathlib import Path
from typing import IO, Any

from loragraft.system.remote.urls import SCHEMES, Url

#: A Path made of a URL has lost one of the slashes.
_URL = re.compile(rf"(?:{'|'.join(SCHEMES)}):/{{1,2}}[^/]")


def is_url(given: object) -> bool:
    """Whether it names something elsewhere, by its form alone."""
    return isinstance(given, RemotePath) or (
        isinstance(given, str | PathLike) and bool(_URL.match(str(given)))
    )


def as_path(given: str | PathLike[str]) -> Path:
    """`given` as a path, or as a `RemotePath` if it is a URL."""
    if isinstance(given, Path) and not is_url(given):
        return given
    if isinstance(given, RemotePath):
        return given
    return RemotePath(given) if is_url(given) else Path(given)


class RemotePath(Url):
    """What a URL names.

    Asking for what is there raises LoragraftError if the network, the rights or a package are missing.
    """

    __slots__ = ()

    # ---- what Path asks the file system for ----

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        from loragraft.system.remote.stores import store_of

        store = store_of(self)
        facts = store.facts(self)
        if facts is None and not store.children(self):
            raise FileNotFoundError(2, os.strerror(2), str(self))
        mode = (stat.S_IFDIR if facts is None else stat.S_IFREG) | 0o444
        size, version = (0, "") if facts is None else (facts.size, facts.version)
        return os.stat_result((mode, zlib.crc32(version.encode()), 0, 1, 0, 0, size, 0, 0, 0))

    def lstat(self) -> os.stat_result:
        return self.stat()

    def exists(self, *, follow_symlinks: bool = True) -> bool:
        try:
            self.stat()
        except FileNotFoundError:
            return False
        return True

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        return self.exists() and stat.S_ISREG(self.stat().st_mode)

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        return self.exists() and stat.S_ISDIR(self.stat().st_mode)

    def iterdir(self) -> Generator[RemotePath, None, None]:
        from loragraft.system.remote.stores import store_of

        for name in sorted(store_of(self).children(self)):
            yield self / name

    def glob(self, pattern: str) -> Generator[RemotePath, None, None]:
        """Of the names in it alone: the pattern must not go deeper."""
        for path in self.iterdir():
            if fnmatch.fnmatchcase(path.name, pattern):
                yield path

    def resolve(self, strict: bool = False) -> RemotePath:
        return self

    def absolute(self) -> RemotePath:
        return self

    def open(  # type: ignore[override]  # one way of the many overloads
        self, mode: str = "r", buffering: int = -1, encoding: str | None = None, errors: str | None = None
    ) -> IO[Any]:
        """For reading alone."""
        if set(mode) - set("rbt"):
            raise io.UnsupportedOperation(f"{self} is read only")
        from loragraft.system.remote.blocks import RemoteFile

        raw = io.BufferedReader(RemoteFile.of(self).stream(), 1 << 20)
        return raw if "b" in mode else io.TextIOWrapper(raw, encoding, errors)

    def read_bytes(self) -> bytes:
        with self.open("rb") as file:
            data: bytes = file.read()
            return data
