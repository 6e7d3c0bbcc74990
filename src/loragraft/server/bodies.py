"""Reading a request's body: bounded, JSON, with the fields of a schema."""

from __future__ import annotations

import asyncio
import re
from typing import TypeVar

import msgspec
from starlette.requests import Request as HttpRequest

from loragraft.server.errors import ApiError
from loragraft.server.state import Limits

T = TypeVar("T")
_UNKNOWN = re.compile(r"Object contains unknown field `([^`]*)`(?: - at `\$\.?([^`]*)`)?")
_MISSING = re.compile(r"Object missing required field `([^`]*)`(?: - at `\$\.?([^`]*)`)?")
_PLACE = re.compile(r" - at `\$\.?([^`]*)`")


async def read_body(http: HttpRequest, schema: type[T], limits: Limits) -> T:
    """The body as `schema`. Raises ApiError for one that is too large, is not JSON, or has other fields."""
    try:
        async with asyncio.timeout(limits.body_seconds):
            data = await bounded(http, limits.body_bytes)
    except TimeoutError:
        raise ApiError(
            f"the body did not come within {limits.body_seconds:g} s", status=408, code="body_too_slow"
        ) from None
    return decoded(data, schema)


def decoded(data: bytes, schema: type[T]) -> T:
    """`data` as `schema`. Raises ApiError for what is not JSON, or has other fields."""
    try:
        return msgspec.json.decode(data, type=schema)
    except msgspec.ValidationError as error:
        raise _refused(str(error)) from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ApiError(f"the body is not JSON: {str(error)[:200]}") from None


async def bounded(http: HttpRequest, most: int) -> bytes:
    """The whole body, of at most `most` bytes."""
    length = http.headers.get("content-length", "")
    if length.isdecimal() and int(length) > most:
        raise _too_large(most)
    parts: list[bytes] = []
    size = 0
    async for part in http.stream():
        size += len(part)
        if size > most:
            raise _too_large(most)
        parts.append(part)
    return b"".join(parts)


def _too_large(most: int) -> ApiError:
    return ApiError(
        f"the body is too large: expected at most {most} bytes", status=413, code="body_too_large"
    )


def _refused(problem: str) -> ApiError:
    if found := _UNKNOWN.match(problem):
        name = ".".join(part for part in (found[2], found[1]) if part)
        return ApiError(f"{name}: unknown field", param=name, code="unknown_parameter")
    if found := _MISSING.match(problem):
        name = ".".join(part for part in (found[2], found[1]) if part)
        return ApiError(f"{name}: this field is missing", param=name, code="missing_required_parameter")
    place = _PLACE.search(problem)
    param = place[1] if place else None
    text = _PLACE.sub("", problem)[:300]
    return ApiError(f"{param}: {text}" if param else text, param=param, code="invalid_type")
