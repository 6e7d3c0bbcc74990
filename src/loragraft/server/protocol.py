"""HTTP/1.1 as uvicorn has it, with bounds for a request's head, in bytes and in time, and a time to read the answer:
a client that sends or reads a byte a minute keeps its connection, and a server has only so many."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from loragraft.server.offers import Parser

#: Seconds in which the line and the headers of a request must have come, and what still comes of one that was answered.
HEAD_SECONDS = 20.0
#: Bytes of them, beside what came with their first. So much, too, may come of a body without being part of it: what
#: stands between and behind its chunks.
HEAD_BYTES = 1 << 16
#: Seconds in which a client must have read something of what waits for it.
READ_SECONDS = 30.0
#: Descriptors kept free for the model, adapters and helpers.
_OWN_FILES = 100


def most_connections() -> int:
    """As many as there are descriptors for. Beyond them, requests are answered with 503."""
    if sys.platform == "win32":
        return 400
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(16, min(4096, soft - _OWN_FILES))


class PunctualProtocol(HttpToolsProtocol):
    """Closes a connection whose request's head does not come in time or does not end, or whose client does not read."""

    _due: asyncio.TimerHandle | None = None
    _look: asyncio.TimerHandle | None = None
    _unread = 0
    _in_head = False
    _head = 0
    _in_body = False
    _beside = 0

    def __init__(self, *given: Any, **more: Any) -> None:
        super().__init__(*given, **more)
        self._parsing = Parser(self, lambda: (self.url, self.headers))
        self.parser: Any = self._parsing

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._expect()
        self._look = self.loop.call_later(READ_SECONDS, self._watch)

    def data_received(self, data: bytes) -> None:
        was_in_head = self._in_head
        self._beside += len(data)
        super().data_received(data)
        if not self._in_body:
            self._beside = 0
        elif self._beside > HEAD_BYTES and not self.transport.is_closing():
            self.transport.close()
        if was_in_head and self._in_head:
            self._head += len(data)
            if self._head > HEAD_BYTES and not self.transport.is_closing():
                self.send_400_response("The request's head is too large.")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head = True, 0
        self._expect()

    def on_headers_complete(self) -> None:
        if self._parsing.is_offer:
            return
        self._in_head, self._in_body, self._beside = False, True, 0
        self._unexpect()
        super().on_headers_complete()

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_body:  # those behind a body are wanted by nobody
            super().on_header(name, value)

    def on_body(self, body: bytes) -> None:
        self._beside = 0
        super().on_body(body)
        if self.cycle.response_complete:  # it is read on for some time, so that the client sees the answer
            self._expect()

    def on_message_complete(self) -> None:
        if self._parsing.is_offer:
            return
        self._in_body = False
        super().on_message_complete()
        self._unexpect()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unexpect()
        if self._look is not None:
            self._look.cancel()
        super().connection_lost(exc)

    def _expect(self) -> None:
        """Close the connection in a while."""
        if self._due is None:
            self._due = self.loop.call_later(HEAD_SECONDS, self._close)

    def _unexpect(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def _close(self) -> None:
        self._due = None
        if not self.transport.is_closing():
            self.transport.close()

    def _watch(self) -> None:
        left = self.transport.get_write_buffer_size()
        if left and left == self._unread:
            self.transport.abort()  # `close` would wait for the client to read the rest
            return
        self._unread = left
        self._look = self.loop.call_later(READ_SECONDS, self._watch)
