"""Who gets which part of the work, and when."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Any

import pytest

from loragraft.system.workers.crew import Crew, Done, Failed, Lost, Make, Spread


class Here(Crew):
    """Workers in this process; each does one part in a `wait`, or dies of it as often as `deadly` says."""

    def __init__(self, size: int, deadly: dict[int, int] | None = None) -> None:
        self.size, self.deadly, self.hired = size, deadly or {}, 0
        self.given: dict[Hashable, deque[int]] = {}
        self.most: dict[Hashable, int] = {}
        """Parts that a worker had at once."""

    def hire(self, make: Make) -> Hashable:
        self.hired += 1
        self.given[self.hired], self.most[self.hired] = deque(), 0
        return self.hired

    def give(self, worker: Hashable, part: int) -> None:
        self.given[worker].append(part)
        self.most[worker] = max(self.most[worker], len(self.given[worker]))

    def wait(self) -> list[Done | Failed | Lost]:
        news: list[Done | Failed | Lost] = []
        for worker, parts in list(self.given.items()):
            if parts and self.deadly.get(parts[0], 0):
                self.deadly[parts[0]] -= 1
                news += [Lost(worker, "died") for _ in parts]  # a cluster tells of each part
                del self.given[worker]
            elif parts:
                news.append(Done(worker, parts.popleft() ** 2))
        return news

    def dismiss(self, worker: Hashable) -> None:
        del self.given[worker]

    def close(self) -> None: ...


def spread(crew: Here, parts: int, ahead: int) -> Spread[int]:
    results: dict[int, Any] = {}

    def done(part: int, result: Any) -> None:
        assert part not in results
        results[part] = result

    spread = Spread(crew, lambda: lambda part: part, range(parts), done, ahead=ahead)
    spread.run()
    assert results == {part: part**2 for part in range(parts)}
    return spread


@pytest.mark.parametrize("ahead", [0, 1, 2])
def test_a_worker_has_so_many_parts_ahead(ahead: int) -> None:
    crew = Here(3)
    spread(crew, 50, ahead)
    assert crew.most == dict.fromkeys((1, 2, 3), 1 + ahead)


def test_few_parts_go_to_all() -> None:
    """None waits at one worker while another has nothing to do."""
    crew = Here(4)
    spread(crew, 6, 2)
    assert set(crew.most.values()) == {1}


def test_the_parts_of_a_worker_that_died_are_done_once() -> None:
    crew = Here(2, {0: 1, 5: 2, 19: 3})
    assert spread(crew, 20, 1).lost == 6
    assert crew.hired == 2 + 6
