"""Workers that keep what they have made from one step to the next.

Each has a place, and gets one message a step. One that dies is replaced: the new one is told again what its place has
to know, and gets the same message. A message says itself what is to be done (`do`) with what a worker has made.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Protocol

from loragraft.errors import LoragraftError
from loragraft.system.workers.crew import MAX_LOSSES, Crew, Failed, Lost, Make


class Message(Protocol):
    """Picklable, and so is what comes of it."""

    def do(self, site: Any, /) -> Any: ...


class Team(Protocol):
    """`size` places."""

    size: int

    def step(self, messages: Sequence[Message | None]) -> list[Any]:
        """What comes of the message to each place; None where there is none. Raises what doing it raised."""

    def remember(self, place: int, message: Message) -> None:
        """A worker who comes to `place` is told this first."""

    def forget(self) -> None:
        """Nothing that was remembered is needed any more."""


class Alone:
    """A team of one, here: `site` is what it makes things of."""

    size = 1

    def __init__(self, site: Any) -> None:
        self._site = site

    def step(self, messages: Sequence[Message | None]) -> list[Any]:
        return [None if message is None else message.do(self._site) for message in messages]

    def remember(self, place: int, message: Message) -> None:
        pass

    def forget(self) -> None:
        pass


class Placed:
    """The workers of `crew`, each of which calls `make`; one is hired when its place gets its first message."""

    def __init__(self, crew: Crew, make: Make) -> None:
        self.size = crew.size
        self._crew, self._make = crew, make
        self._workers: list[Hashable | None] = [None] * self.size
        self._known: list[list[Message]] = [[] for _ in range(self.size)]
        self.lost = 0
        """Workers that died."""

    def step(self, messages: Sequence[Message | None]) -> list[Any]:
        results: list[Any] = [None] * self.size
        owed: dict[Hashable, tuple[int, int]] = {}
        """By worker: its place, and the answers to come, of which the last counts."""
        for place, message in enumerate(messages):
            if message is not None:
                self._ask(place, message, owed)
        losses = [0] * self.size
        while owed:
            for news in self._crew.wait():
                if isinstance(news, Failed):
                    raise news.problem
                if isinstance(news, Lost):
                    self._gone(news.worker)
                    if news.worker not in owed:
                        continue
                    place, _ = owed.pop(news.worker)
                    losses[place] += 1
                    if losses[place] >= MAX_LOSSES:
                        raise LoragraftError(
                            "workers", f"{MAX_LOSSES} died of the same part of the work", found=news.why
                        )
                    again = messages[place]
                    assert again is not None
                    self._ask(place, again, owed)
                elif news.worker in owed:
                    place, answers = owed.pop(news.worker)
                    if answers > 1:
                        owed[news.worker] = (place, answers - 1)
                        self._tell_next(place, messages[place], answers - 1)
                    else:
                        results[place] = news.result
        return results

    def remember(self, place: int, message: Message) -> None:
        self._known[place].append(message)

    def forget(self) -> None:
        for known in self._known:
            known.clear()

    def close(self) -> None:
        """End the workers; the crew may hire others."""
        for place, worker in enumerate(self._workers):
            if worker is not None:
                self._crew.dismiss(worker)
                self._workers[place] = None

    def _ask(self, place: int, message: Message, owed: dict[Hashable, tuple[int, int]]) -> None:
        worker = self._workers[place]
        answers = 1
        if worker is None:
            worker = self._workers[place] = self._crew.hire(self._make)
            answers += len(self._known[place])
        owed[worker] = (place, answers)
        self._tell_next(place, message, answers)

    def _tell_next(self, place: int, message: Message | None, answers: int) -> None:
        """The first of what a worker has to hear, one at a time: so neither side waits for the other to read."""
        known = self._known[place]
        self._crew.give(self._workers[place], known[len(known) + 1 - answers] if answers > 1 else message)

    def _gone(self, worker: Hashable) -> None:
        if worker in self._workers:
            self._workers[self._workers.index(worker)] = None
            self.lost += 1
