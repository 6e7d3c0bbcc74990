"""Events on their way out of the scheduler's thread.

Whoever listens takes Python's lock, and a processor, from the engine each time that it is woken. So events are handed
out together, just before a pass, which needs neither the lock nor anything that Python does. Where passes are fast,
pieces of replies are gathered over some of them: nobody reads hundreds of pieces a second.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from loragraft.inference.scheduler.request import Event, Request
from loragraft.inference.scheduler.telemetry import Telemetry


class Outbox:
    """`pause`: seconds for which what is not urgent may be kept."""

    def __init__(self, telemetry: Telemetry, pause: float) -> None:
        self._telemetry = telemetry
        self._pause = pause
        self._events: list[tuple[Request, Event]] = []
        self._made: Counter[tuple[str, ...]] = Counter()
        self._urgent = False
        self._handed_out = 0.0
        self.delivered: Callable[[], None] = lambda: None
        """Called when events have been emitted."""

    def put(self, request: Request, event: Event, *, urgent: bool = True) -> None:
        self._events.append((request, event))
        self._urgent |= urgent

    def made(self, adapters: tuple[str, ...]) -> None:
        """A token of a reply under these adapters, for the telemetry."""
        self._made[adapters] += 1

    def can_wait(self, seconds: float) -> bool:
        """Whether all that is here may be handed out in `seconds` only."""
        return not self._urgent and time.perf_counter() + seconds - self._handed_out < self._pause

    def hand_out(self) -> None:
        self._handed_out, self._urgent = time.perf_counter(), False
        for adapters, tokens in self._made.items():
            self._telemetry.made(adapters, tokens)
        self._made.clear()
        events, self._events = self._events, []
        for request, event in events:
            request.emit(event)
        if events:
            self.delivered()
