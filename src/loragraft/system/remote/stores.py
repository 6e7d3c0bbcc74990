"""Which store holds a remote file. Each needs a package of its own, which is imported when it is asked for."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

from loragraft.errors import LoragraftError
from loragraft.system.remote.store import Store
from loragraft.system.remote.urls import Url


@functools.cache
def _store(scheme: str) -> Store:
    if scheme == "hf":
        from loragraft.system.remote.hub import HubStore

        return HubStore()
    if scheme in ("http", "https"):
        from loragraft.system.remote.http import HttpStore

        return HttpStore()
    from loragraft.system.remote.buckets import BucketStore

    return BucketStore(scheme)


def store_of(path: Url) -> Store:
    """The store that `path` lies in. Raises LoragraftError if the package that speaks to it is not installed."""
    with needing(path):
        return _store(path.scheme)


@contextmanager
def needing(path: Url | str) -> Iterator[None]:
    """What is imported within belongs to an extra: raises LoragraftError, with what to install, if it is not there."""
    try:
        yield
    except ImportError as problem:
        scheme = str(path).partition(":")[0]
        extra = "gs" if scheme == "gs" else "hub"
        package = (problem.name or {"gs": "gcsfs", "s3": "s3fs"}.get(scheme, "fsspec")).partition(".")[0]
        raise LoragraftError(
            path,
            f"reading and writing URLs needs the package {package}",
            hint=f"pip install 'loragraft[{extra}]'",
        ) from None
