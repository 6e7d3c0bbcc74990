"""Object stores, through fsspec: `s3://bucket/key`, `gs://bucket/key`.

Keys, regions and endpoints come from where each store's own tools take them (AWS_ENDPOINT_URL and so on).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import fsspec

from loragraft.errors import FormatError, LoragraftError
from loragraft.system.remote.store import MAX_NAMES, Facts, Store, brief
from loragraft.system.remote.urls import Url


class BucketStore(Store):
    def __init__(self, scheme: str) -> None:
        super().__init__()
        self.files: Any = fsspec.filesystem(scheme, use_listings_cache=False)

    def facts(self, path: Url) -> Facts | None:
        return self.remembered("facts", path, lambda: self._facts(path))

    def children(self, path: Url) -> Collection[str]:
        return self.remembered("children", path, lambda: self._children(path))

    def read(self, path: Url, facts: Facts, start: int, stop: int) -> bytes:
        try:
            data: bytes = self.files.cat_file(str(path), start=start, end=stop)
        except FileNotFoundError:
            raise FormatError(path, "vanished while it was in use") from None
        except Exception as problem:  # botocore's, aiohttp's, Google's
            raise _unreachable(path, problem) from None
        if len(data) != stop - start:
            raise FormatError(path, "became shorter while it was in use", hint="download it again")
        return data

    def writer(self, path: Url, part: int) -> Any:
        return self.files.open(str(path), "wb", block_size=part, autocommit=False)

    def _facts(self, path: Url) -> Facts | None:
        try:
            info = self.files.info(str(path))
        except FileNotFoundError:
            return None
        except Exception as problem:
            raise _unreachable(path, problem) from None
        if info.get("type") != "file":
            return None
        version = info.get("ETag") or info.get("etag") or info.get("generation") or info.get("mtime")
        return Facts(int(info["size"]), str(version))

    def _children(self, path: Url) -> Collection[str]:
        try:
            found = self.files.ls(str(path), detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return ()
        except Exception as problem:
            raise _unreachable(path, problem) from None
        if len(found) > MAX_NAMES:
            raise LoragraftError(
                path, "holds too many files", found=len(found), expected=f"at most {MAX_NAMES}"
            )
        own = "/".join(path.parts[1:])
        return {name for each in found if (name := str(each).rstrip("/").rpartition("/")[2]) and each != own}


def _unreachable(path: Url, problem: BaseException) -> LoragraftError:
    what = "may not be read" if isinstance(problem, PermissionError) else "cannot be reached"
    return LoragraftError(path, f"{what}: {brief(problem)}", hint=credentials_hint(path, problem))


def credentials_hint(path: Url, problem: BaseException) -> str | None:
    """What to do about `problem`, if it is that there are no keys, or that they do not suffice."""
    lacking = "credentials" in str(problem).lower()
    if path.scheme != "s3" or not (lacking or isinstance(problem, PermissionError)):
        return None
    return "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, to keys that may do that"
