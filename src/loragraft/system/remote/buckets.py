"""Object stores, through fsspec: `s3://bucket/key`, `gs://bucket/key`.

Keys, regions and endpoints come from where each store's own tools take them (AWS_ENDPOINT_URL and so on).
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from time import sleep
from typing import Any

import fsspec

from loragraft.errors import FormatError, LoragraftError
from loragraft.system.remote.store import MAX_NAMES, Facts, Store, brief
from loragraft.system.remote.urls import Url

#: Seconds until a store that answered before, and now cannot be reached, is asked again. (By then its library has tried
#: for some seconds. One that never answered is more likely not there.)
_PAUSES = (2.0, 8.0, 30.0)
#: What botocore, aiohttp, fsspec and Python call such failures.
_PASSING = {"ConnectionError", "HTTPClientError", "ClientConnectionError", "TimeoutError", "FSTimeoutError"}


class BucketStore(Store):
    def __init__(self, scheme: str) -> None:
        super().__init__()
        self._answered = False
        self.files: Any = fsspec.filesystem(scheme, use_listings_cache=False)

    def facts(self, path: Url) -> Facts | None:
        return self.remembered("facts", path, lambda: self._facts(path))

    def children(self, path: Url) -> Collection[str]:
        return self.remembered("children", path, lambda: self._children(path))

    def read(self, path: Url, facts: Facts, start: int, stop: int) -> bytes:
        try:
            data: bytes = self._asked(path, lambda: self.files.cat_file(str(path), start=start, end=stop))
        except FileNotFoundError:
            raise FormatError(path, "vanished while it was in use") from None
        if len(data) != stop - start:
            raise FormatError(path, "became shorter while it was in use", hint="download it again")
        return data

    def writer(self, path: Url, part: int) -> Any:
        return self.files.open(str(path), "wb", block_size=part, autocommit=False)

    def _facts(self, path: Url) -> Facts | None:
        try:
            info = self._asked(path, lambda: self.files.info(str(path)))
        except FileNotFoundError:
            return None
        if info.get("type") != "file":
            return None
        version = info.get("ETag") or info.get("etag") or info.get("generation") or info.get("mtime")
        return Facts(int(info["size"]), str(version))

    def _children(self, path: Url) -> Collection[str]:
        try:
            found = self._asked(path, lambda: self.files.ls(str(path), detail=False))
        except (FileNotFoundError, NotADirectoryError):
            return ()
        if len(found) > MAX_NAMES:
            raise LoragraftError(
                path, "holds too many files", found=len(found), expected=f"at most {MAX_NAMES}"
            )
        own = "/".join(path.parts[1:])
        return {name for each in found if (name := str(each).rstrip("/").rpartition("/")[2]) and each != own}

    def _asked(self, path: Url, ask: Callable[[], Any]) -> Any:
        """`ask()`. Raises FileNotFoundError and NotADirectoryError as it does, LoragraftError for all else."""
        for pause in (*_PAUSES, None):
            try:
                answer = ask()
            except (FileNotFoundError, NotADirectoryError):
                self._answered = True
                raise
            except Exception as problem:  # botocore's, aiohttp's, Google's
                if pause is None or not self._answered or not _passes(problem):
                    raise _unreachable(path, problem) from None
                sleep(pause)
            else:
                self._answered = True
                return answer
        raise AssertionError


def _passes(problem: BaseException) -> bool:
    return any(kind.__name__ in _PASSING for kind in type(problem).__mro__)


def _unreachable(path: Url, problem: BaseException) -> LoragraftError:
    what = "may not be read" if isinstance(problem, PermissionError) else "cannot be reached"
    return LoragraftError(path, f"{what}: {brief(problem)}", hint=credentials_hint(path, problem))


def credentials_hint(path: Url, problem: BaseException) -> str | None:
    """What to do about `problem`, if it is that there are no keys, or that they do not suffice."""
    lacking = "credentials" in str(problem).lower()
    if path.scheme != "s3" or not (lacking or isinstance(problem, PermissionError)):
        return None
    return "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, to keys that may do that"
