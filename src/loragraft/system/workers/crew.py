"""What a crew is, and the loop that hands out parts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from loragraft.errors import LoragraftError

_Part = TypeVar("_Part")

#: A part that was lost with so many workers is one that kills them.
MAX_LOSSES = 5

Make = Callable[[], Callable[[Any], Any]]
"""Picklable. Called once in each worker; gives the function that does a part, both of which are picklable too."""


@dataclass(frozen=True, slots=True)
class Done:
    """A part that a worker did, with what it made of it."""

    worker: Hashable
    result: Any


@dataclass(frozen=True, slots=True)
class Failed:
    """A part that cannot be done, by anybody."""

    worker: Hashable
    problem: BaseException


@dataclass(frozen=True, slots=True)
class Lost:
    """A worker that is no more, nor what it was doing."""

    worker: Hashable
    why: str


class Crew(ABC):
    """Some workers. A context manager that ends them."""

    size: int
    """How many there are to be."""

    @abstractmethod
    def hire(self, make: Make) -> Hashable:
        """Start one more worker; what names it. Raises LoragraftError."""

    @abstractmethod
    def give(self, worker: Hashable, part: Any) -> None:
        """Have it do `part`; of a worker that is no more, `wait` tells."""

    @abstractmethod
    def wait(self) -> list[Done | Failed | Lost]:
        """What has come of the parts that were given, at least one."""

    @abstractmethod
    def close(self) -> None:
        """End all workers."""

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class Spread(Generic[_Part]):
    """Hands `parts` out to `crew` until all are done; `done(part, result)` is called here, for each once."""

    def __init__(
        self, crew: Crew, make: Make, parts: Sequence[_Part], done: Callable[[_Part, Any], None]
    ) -> None:
        self._crew, self._make, self._done = crew, make, done
        self._waiting = deque(parts)
        self._doing: dict[Hashable, _Part | None] = {}
        self._losses: dict[int, int] = {}
        self.lost = 0
        """Workers that died."""

    def run(self) -> None:
        """Raises what doing a part raised; LoragraftError if workers keep dying."""
        for _ in range(min(self._crew.size, len(self._waiting))):
            self._doing[self._crew.hire(self._make)] = None
        self._hand_out()
        while any(part is not None for part in self._doing.values()):
            for news in self._crew.wait():
                part = self._doing.get(news.worker)
                if isinstance(news, Lost):
                    self._replace(news, part)
                elif isinstance(news, Failed):
                    raise news.problem
                elif part is not None:
                    self._doing[news.worker] = None
                    self._done(part, news.result)
            self._hand_out()

    def _hand_out(self) -> None:
        for worker, part in self._doing.items():
            if part is None and self._waiting:
                self._doing[worker] = self._waiting.popleft()
                self._crew.give(worker, self._doing[worker])

    def _replace(self, news: Lost, part: _Part | None) -> None:
        if self._doing.pop(news.worker, self) is self:
            return  # one that is known to be gone
        self.lost += 1
        if part is not None:
            self._losses[id(part)] = self._losses.get(id(part), 0) + 1
            if self._losses[id(part)] >= MAX_LOSSES:
                raise LoragraftError(
                    "workers", f"{MAX_LOSSES} died of the same part of the work", found=news.why
                )
            self._waiting.appendleft(part)
        if self._waiting:
            self._doing[self._crew.hire(self._make)] = None
