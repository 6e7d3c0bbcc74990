"""Events on their way from the scheduler's thread to the event loop.

All this happens for every token, while the engine wants the same processors: an `asyncio.Queue` costs twice as much.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress

from loragraft.inference.scheduler.request import Event


class Inbox:
    """The events of one request, on the event loop. One coroutine takes them."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque()
        self._waiting: asyncio.Future[None] | None = None

    def __len__(self) -> int:
        return len(self._events)

    def put(self, event: Event) -> None:
        self._events.append(event)
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    async def get(self) -> Event:
        """The next event, once there is one."""
        while not self._events:
            self._waiting = asyncio.get_running_loop().create_future()
            try:
                await self._waiting
            finally:
                self._waiting = None
        return self._events.popleft()


class Mailbox:
    """Takes events from the scheduler's thread to the event loop: all that one pass has made at once, as waking the
    loop costs more than an event does."""

    def __init__(self) -> None:
        self._letters: deque[tuple[Inbox, Event]] = deque()
        self.loop: asyncio.AbstractEventLoop | None = None

    def put(self, inbox: Inbox, event: Event) -> None:
        """From the scheduler's thread: leave `event` until `send`."""
        self._letters.append((inbox, event))

    def send(self) -> None:
        """From the scheduler's thread: have the event loop take what was put."""
        if self.loop is not None:
            with suppress(RuntimeError):  # the loop was closed: nobody listens any more
                self.loop.call_soon_threadsafe(self._take)

    def _take(self) -> None:
        while self._letters:
            inbox, event = self._letters.popleft()
            inbox.put(event)
