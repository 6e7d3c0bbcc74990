"""Events on their way from the scheduler's thread to the event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress

from loragraft.inference.scheduler.request import Event


class Mailbox:
    """Takes events from the scheduler's thread to the event loop: all that one pass has made at once, as waking the
    loop costs more than an event does."""

    def __init__(self) -> None:
        self._letters: deque[tuple[asyncio.Queue[Event], Event]] = deque()
        self.loop: asyncio.AbstractEventLoop | None = None

    def put(self, queue: asyncio.Queue[Event], event: Event) -> None:
        """From the scheduler's thread: leave `event` until `send`."""
        self._letters.append((queue, event))

    def send(self) -> None:
        """From the scheduler's thread: have the event loop take what was put."""
        if self.loop is not None:
            with suppress(RuntimeError):  # the loop was closed: nobody listens any more
                self.loop.call_soon_threadsafe(self._take)

    def _take(self) -> None:
        while self._letters:
            queue, event = self._letters.popleft()
            queue.put_nowait(event)
