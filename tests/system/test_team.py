"""Workers that keep what they have made: one who comes to a dead one's place knows what that one knew."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import pytest

from loragraft.errors import LoragraftError
from loragraft.system.workers.crew import MAX_LOSSES, Crew, Done, Failed, Lost, Make
from loragraft.system.workers.processes import answered
from loragraft.system.workers.team import Alone, Placed


@dataclass(frozen=True)
class Say:
    """Adds to what was said; what comes of it is all that was said there."""

    word: str

    def do(self, site: list[str]) -> str:
        site.append(self.word)
        if self.word == "wrong":
            raise LoragraftError("word", "is wrong")
        return " ".join(site)


class Here(Crew):
    """Workers in this process, which die of so manyth messages, counted over all of them."""

    def __init__(self, size: int, doomed: set[int] | None = None) -> None:
        self.size, self.doomed = size, doomed or set()
        self.given, self.hired = 0, 0
        self.work: dict[Hashable, Callable[[Any], Any]] = {}
        self.news: deque[Done | Failed | Lost] = deque()

    def hire(self, make: Make) -> Hashable:
        self.hired += 1
        self.work[self.hired] = make()
        return self.hired

    def give(self, worker: Hashable, part: Any) -> None:
        self.given += 1
        if self.given in self.doomed:
            del self.work[worker]
            self.news.append(Lost(worker, "died"))
            return
        answer = answered(self.work[worker], part)
        self.news.append(
            Failed(worker, answer) if isinstance(answer, BaseException) else Done(worker, answer[0])
        )

    def wait(self) -> list[Done | Failed | Lost]:
        assert self.news, "nothing is under way"
        return [self.news.popleft()]

    def dismiss(self, worker: Hashable) -> None:
        del self.work[worker]

    def close(self) -> None: ...


def make() -> Callable[[Any], Any]:
    said: list[str] = []
    return lambda message: message.do(said)


def conversation(team: Placed) -> list[list[Any]]:
    found = []
    for number in range(4):
        words = [Say(f"{place}{number}") for place in range(team.size)]
        found.append(team.step(words))
        for place, word in enumerate(words):
            team.remember(place, word)
    return found


EXPECTED = [[" ".join(f"{place}{n}" for n in range(number + 1)) for place in range(2)] for number in range(4)]


@pytest.mark.parametrize("doomed", [set(), {1}, {4}, {7, 8}, {5, 6, 7}, {3, 4, 5, 9}], ids=str)
def test_whoever_dies_nothing_is_forgotten(doomed: set[int]) -> None:
    crew = Here(2, doomed)
    team = Placed(crew, make)
    assert conversation(team) == EXPECTED
    assert team.lost == len(doomed)
    assert crew.hired == 2 + len(doomed)
    team.close()
    assert crew.work == {}


def test_one_that_died_between_two_steps() -> None:
    crew = Here(2)
    team = Placed(crew, make)
    team.step([Say("a"), Say("b")])
    team.remember(0, Say("a"))
    team.remember(1, Say("b"))
    del crew.work[1]
    crew.news.append(Lost(1, "died"))
    assert team.step([None, Say("c")]) == [None, "b c"]
    assert team.step([Say("d"), None]) == ["a d", None]
    team.forget()
    assert [team.lost, crew.hired] == [1, 3]


def test_a_place_that_is_given_nothing_has_no_worker() -> None:
    crew = Here(3)
    assert Placed(crew, make).step([Say("a"), None, None]) == ["a", None, None]
    assert crew.hired == 1


def test_a_message_that_kills_whoever_gets_it_ends_the_run() -> None:
    team = Placed(Here(1, set(range(1, 100))), make)
    with pytest.raises(LoragraftError, match=f"{MAX_LOSSES} died of the same part"):
        team.step([Say("a")])


def test_what_a_message_raises_is_raised_here() -> None:
    for team in (Placed(Here(2), make), Alone([])):
        with pytest.raises(LoragraftError, match="word: is wrong"):
            team.step([Say("wrong")])
