"""HTTP/1.1 as uvicorn has it, with a time for a request's head and for reading the answer: a client that sends or reads
a byte a minute keeps its connection, and a server has only so many."""

from __future__ import annotations

import asyncio
import resource
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

#: Seconds in which the line and the headers of a request must have come, from its first byte or from the connection.
HEAD_SECONDS = 20.0
#: Seconds in which a client must have read something of what waits for it.
READ_SECONDS = 30.0
#: Descriptors kept free for the model, adapters and helpers.
_OWN_FILES = 100


def most_connections() -> int:
    """As many as there are descriptors for. Beyond them, requests are answered with 503."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(16, min(4096, soft - _OWN_FILES))


class PunctualProtocol(H11Protocol):
    """Closes a connection whose request's head does not come in time, or whose client does not read what is sent."""

    _due: asyncio.TimerHandle | None = None
    _look: asyncio.TimerHandle | None = None
    _unread = 0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._due = self.loop.call_later(HEAD_SECONDS, self._close)
        self._look = self.loop.call_later(READ_SECONDS, self._watch)

    def handle_events(self) -> None:
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:  # a whole head has come
            self._cancel_due()
        elif (
            self._due is None and self._is_idle() and self.conn.trailing_data[0]
        ):  # the next request has begun
            self._due = self.loop.call_later(HEAD_SECONDS, self._close)

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_due()
        if self._look is not None:
            self._look.cancel()
        super().connection_lost(exc)

    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _cancel_due(self) -> None:
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
