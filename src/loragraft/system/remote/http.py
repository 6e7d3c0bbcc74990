"""Ranges of a file by HTTP, with no more taken of an answer than was asked for."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any

from huggingface_hub.utils import http_stream_backoff  # type: ignore[attr-defined]  # loaded lazily

from loragraft.errors import FormatError, LoragraftError
from loragraft.system.remote.store import Facts, Store, brief
from loragraft.system.remote.urls import Url

_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")
#: Seconds without a byte; how often a passing failure is tried again, each time after twice as many seconds.
_TIMEOUT, _RETRIES, _PAUSE = 60.0, 3, 0.5


class HttpStore(Store):
    """Single files: a web server has no folders that could be listed."""

    def facts(self, path: Url) -> Facts | None:
        return self.remembered("facts", path, lambda: probe(path, str(path), {}))

    def children(self, path: Url) -> tuple[str, ...]:
        return ()

    def read(self, path: Url, facts: Facts, start: int, stop: int) -> bytearray:
        return read_range(path, str(path), {}, facts, start, stop)


def probe(path: Url, url: str, headers: Mapping[str, str]) -> Facts | None:
    """Size and entity tag of what `url` names, by asking for its first byte; None if there is nothing."""
    status, answer, _ = _get(path, url, headers, 0, 1)
    if status in (404, 410):
        return None
    _check_status(path, status)
    return Facts(_total(path, answer, 0, 1), answer.get("etag", ""))


def read_range(
    path: Url, url: str, headers: Mapping[str, str], facts: Facts, start: int, stop: int
) -> bytearray:
    """Bytes [start, stop). Raises FormatError if the file is no longer the one that `facts` are of."""
    status, answer, data = _get(path, url, headers, start, stop)
    if status in (404, 410, 416):
        raise FormatError(
            path, "became shorter, or vanished, while it was in use", found=f"HTTP status {status}"
        )
    _check_status(path, status)
    total, tag = _total(path, answer, start, stop), answer.get("etag", "")
    if total != facts.size or (tag and facts.version.startswith(('"', "W/")) and tag != facts.version):
        raise FormatError(path, "changed while it was in use", hint="start again")
    if len(data) != stop - start:
        raise LoragraftError(path, "the answer ends early", found=f"{len(data)} bytes", expected=stop - start)
    return data


def _get(
    path: Url, url: str, headers: Mapping[str, str], start: int, stop: int
) -> tuple[int, Mapping[str, Any], bytearray]:
    """Status, headers and bytes. What refuses to answer is asked again by huggingface_hub's client; an answer that is
    cut in its middle, by us."""
    asked = {**headers, "Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
    cut: Exception | None = None
    for attempt in range(1 + _RETRIES):
        if attempt:
            time.sleep(_PAUSE * 2 ** (attempt - 1))
        data, cut = bytearray(), None
        try:
            with http_stream_backoff(
                "GET", url, headers=asked, follow_redirects=True, timeout=_TIMEOUT, max_retries=_RETRIES
            ) as response:
                if response.status_code == 206:
                    cut = _read_into(data, response, path, stop - start)
                if cut is None:
                    return response.status_code, response.headers, data
        except LoragraftError:
            raise
        except Exception as problem:  # of the client's many, all of which end it
            raise LoragraftError(path, f"cannot be reached: {brief(problem)}") from None
    raise LoragraftError(
        path, f"the connection was cut, and again {_RETRIES} times: {brief(cut or OSError())}"
    )


def _read_into(data: bytearray, response: Any, path: Url, count: int) -> Exception | None:
    """What ended the answer, if it is not whole. (It must not leave the client's `with`, which would take it for its
    own failure.)"""
    pieces = response.iter_raw()
    while True:
        try:
            piece = next(pieces, None)
        except Exception as problem:
            return problem
        if piece is None:
            return None
        data += piece
        if len(data) > count:
            raise FormatError(path, "the server sends more than it was asked for")


def _check_status(path: Url, status: int) -> None:
    if status == 206:
        return
    if status == 200:
        raise LoragraftError(path, "the server does not answer range requests", hint="download it first")
    reasons = {401: "needs a login", 403: "may not be read", 416: "is empty"}
    raise LoragraftError(path, reasons.get(status, "cannot be read"), found=f"HTTP status {status}")


def _total(path: Url, headers: Mapping[str, Any], start: int, stop: int) -> int:
    """The file's size, from an answer that must be the range that was asked for."""
    match = _CONTENT_RANGE.fullmatch(str(headers.get("content-range", "")))
    if match is None or (int(match[1]), int(match[2])) != (start, stop - 1) or int(match[3]) < stop:
        raise FormatError(
            path,
            "the server answered with another range",
            found=str(headers.get("content-range"))[:80],
            expected=f"bytes {start}-{stop - 1}",
        )
    return int(match[3])
