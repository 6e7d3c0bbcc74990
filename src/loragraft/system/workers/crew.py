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
    def dismiss(self, worker: Hashable) -> None:
        """End one that has nothing to do."""

    @abstractmethod
    def close(self) -> None:
        """End all workers."""

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class Spread(Generic[_Part]):
    """Hands `parts` out to `crew` until all are done; `done(part, result)` is called here, for each once.

    `ahead`: so many parts wait at a worker, beside the one that it does, as long as there are enough for all. It then
    loses no time between parts, however far away it is; when parts are large, the last ones end together with 0.
    """

    def __init__(
        self,
        crew: Crew,
        make: Make,
        parts: Sequence[_Part],
        done: Callable[[_Part, Any], None],
        *,
        ahead: int = 0,
    ) -> None:
        self._crew, self._make, self._done, self._ahead = crew, make, done, ahead
        self._waiting = deque(parts)
        self._given: dict[Hashable, deque[_Part]] = {}
        """By worker, in the order that it does them."""
        self._losses: dict[int, int] = {}
        self.lost = 0
        """Workers that died."""

    def run(self) -> None:
        """Raises what doing a part raised; LoragraftError if workers keep dying."""
        for _ in range(min(self._crew.size, len(self._waiting))):
            self._hire()
        self._hand_out()
        while any(self._given.values()):
            for news in self._crew.wait():
                given = self._given.get(news.worker)
                if given is None:
                    continue  # of a worker that is known to be gone
                if isinstance(news, Lost):
                    self._replace(news, given)
                elif isinstance(news, Failed):
                    raise news.problem
                else:
                    self._done(given.popleft(), news.result)
            self._hand_out()

    def _hire(self) -> None:
        self._given[self._crew.hire(self._make)] = deque()

    def _hand_out(self) -> None:
        for depth in range(1 + self._ahead):
            for worker, given in self._given.items():
                enough = self._waiting and (depth == 0 or len(self._waiting) > len(self._given))
                if len(given) == depth and enough:
                    given.append(self._waiting.popleft())
                    self._crew.give(worker, given[-1])

    def _replace(self, news: Lost, given: deque[_Part]) -> None:
        del self._given[news.worker]
        self.lost += 1
        if given:  # the first is what it died of; the others were not begun
            self._losses[id(given[0])] = self._losses.get(id(given[0]), 0) + 1
            if self._losses[id(given[0])] >= MAX_LOSSES:
                raise LoragraftError(
                    "workers", f"{MAX_LOSSES} died of the same part of the work", found=news.why
                )
            self._waiting.extendleft(reversed(given))
        if self._waiting:
            self._hire()
