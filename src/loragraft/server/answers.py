"""How an answer goes back: JSON, or server-sent events."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

import msgspec
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from loragraft.inference.scheduler.request import Done

Json = dict[str, Any]


def new_id(kind: str) -> str:
    """An id that begins with `kind`, as clients tell them apart by."""
    return kind + secrets.token_hex(12)


def now() -> int:
    return int(time.time())


def answer(body: object, headers: Mapping[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(body), 200, dict(headers or {}), "application/json")


def stream(
    events: AsyncIterator[bytes], headers: Mapping[str, str], running: AbstractAsyncContextManager[object]
) -> Response:
    """Server-sent events of `running`, which is left when the last was sent or the client has gone away: before the
    first, too, when the generator of the events has not begun, and nothing in it would be done."""
    more = {**headers, "cache-control": "no-cache", "x-accel-buffering": "no"}
    return _Events(events, 200, more, "text/event-stream", running=running)


class _Events(StreamingResponse):
    def __init__(self, *args: Any, running: AbstractAsyncContextManager[object]) -> None:
        super().__init__(*args)
        self._running = running

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._running.__aexit__(None, None, None)


def event(body: object) -> bytes:
    """One server-sent event."""
    return b"data: " + msgspec.json.encode(body) + b"\n\n"


def named_event(name: str, body: object) -> bytes:
    """One server-sent event with a name."""
    return b"event: " + name.encode() + b"\n" + event(body)


def ending(last: Json, head: Json, done: Done, receipt: Json, with_usage: bool) -> bytes:
    """The end of a stream: `last`, the last choice's chunk, and the receipt in it. A chunk without choices comes only
    where usage was asked for, and then holds both: clients take the first choice of any other."""
    if with_usage:
        end = {**head, "choices": [], "usage": usage(done), "loragraft": receipt}
        return event(last) + event(end) + LAST_EVENT
    return event({**last, "loragraft": receipt}) + LAST_EVENT


LAST_EVENT = b"data: [DONE]\n\n"


def usage(done: Done) -> Json:
    return {
        "prompt_tokens": done.prompt_tokens,
        "completion_tokens": done.completion_tokens,
        "total_tokens": done.prompt_tokens + done.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": done.cached_tokens},
    }
