"""Speculation by prompt lookup: the same replies, in fewer passes."""

from __future__ import annotations

import numpy as np
import pytest

import loragraft as lg
from contamination import Asked, Recorder
from loragraft.inference.model import Model
from loragraft.inference.sampling import Sampling
from loragraft.inference.scheduler.lookup import MOST, Lookup, PassCosts
from loragraft.inference.scheduler.loop import Scheduler
from loragraft.inference.scheduler.request import Done, Failed, Piece
from loragraft.inference.scheduler.shelf import Shelf, plain_only
from loragraft.inference.scheduler.telemetry import Telemetry
from loragraft.opening import load_adapter
from paths import data


class Counting(Telemetry):
    steps = guessed = right = 0

    def passed(self, rows: int, sequences: int, seconds: float) -> None:
        self.steps += sequences  # how many share a pass depends on when they came

    def guesses(self, guessed: int, right: int) -> None:
        self.guessed += guessed
        self.right += right


class Free(PassCosts):
    """A row costs next to nothing: every guess pays."""

    def of(self, rows: int) -> float:
        return 1 + 1e-6 * rows


@pytest.fixture(scope="module")
def model() -> Model:
    return lg.load(data("llama-kjv"))


def replies(
    model: Model, costs: PassCosts | None, settings: list[dict[str, object]]
) -> tuple[list[tuple[str, list[str], str]], Counting]:
    """Text, digests of all logits, and tokens, of each request, three of them at a time."""
    counting = Counting()
    shelf = Shelf(model.program, lambda path: plain_only(load_adapter(path, model.source)))
    shelf.register("poet", data("llama-kjv.shakespeare"))
    scheduler = Scheduler(
        model.program,
        model.tokenizer,
        shelf,
        context=model.context_length,
        telemetry=counting,
        lookup=costs is not None,
    )
    if costs is not None:
        scheduler.costs = costs
    scheduler.start()
    found = []
    try:
        for begin in range(0, len(settings), 3):
            asked = [_asked(model, number, settings[number]) for number in range(begin, len(settings))[:3]]
            for one in asked:
                scheduler.submit(one.request)
            for one in asked:
                text = ""
                while not isinstance(event := one.events.get(timeout=120), Done | Failed):
                    text += event.text if isinstance(event, Piece) else ""
                assert isinstance(event, Done)
                found.append((text, one.recorder.digests, str(event.completion_tokens)))
    finally:
        scheduler.stop(0)
        shelf.unregister("poet")
    return found, counting


def _asked(model: Model, number: int, settings: dict[str, object]) -> Asked:
    adapters = (("poet", 0.7),) if number % 2 else ()
    prompt = model.tokenize("And the king said unto the king, And the king said")
    one = Asked(prompt, adapters, Sampling(temperature=0), 48, recorder=Recorder())
    for name, value in settings.items():
        setattr(one.request, name, value)
    return one


def test_replies_are_the_same_to_the_bit(model: Model) -> None:
    settings: list[dict[str, object]] = [
        {},
        {},
        {"sampling": Sampling(temperature=0.8, top_k=0, top_p=1.0, min_p=0.0, seed=4)},
        {"sampling": Sampling(temperature=0.3, seed=5)},
        {"stop": ("the king",)},
        {"max_tokens": 7},
        {"constraint": None, "logprobs": 2},
    ]
    plain, without = replies(model, None, settings)
    guessed, counted = replies(model, Free(), settings)
    assert guessed == plain
    assert without.guessed == 0
    assert counted.right > 10
    assert counted.guessed > counted.right
    assert counted.steps < 0.9 * without.steps


def test_what_is_kept_of_a_reply_is_what_was_said(model: Model) -> None:
    """A reply that ends among guesses leaves no state of a wrong one to the next prompt."""
    text = "And the king said unto the king, And the king said"
    shelf = Shelf(model.program, lambda path: plain_only(load_adapter(path, model.source)))
    found = []
    for costs in (None, Free()):
        scheduler = Scheduler(
            model.program, model.tokenizer, shelf, context=model.context_length, lookup=costs is not None
        )
        scheduler.costs = costs or scheduler.costs
        scheduler.start()
        digests = []
        prompt = model.tokenize(text)
        for length in (5, 9, 13, 21):
            one = Asked(prompt, (), Sampling(temperature=0), length, recorder=Recorder())
            scheduler.submit(one.request)
            assert isinstance(end := one.end(), Done)
            digests.append(one.recorder.digests)
            said = [int(token) for token in model.tokenize(" and lo")]
            prompt = np.concatenate([prompt, np.array(said, np.int32)])
            assert end.completion_tokens == length
        found.append(digests)
        scheduler.stop(0)
        shelf = Shelf(model.program, lambda path: plain_only(load_adapter(path, model.source)))
    assert found[0] == found[1]


def test_what_followed_before_is_guessed() -> None:
    lookup = Lookup([1, 2, 3, 4, 5, 6, 1, 2, 3])
    assert lookup.guesses(1, Free(), 3) == [4, 5, 6]
    assert lookup.guesses(1, Free(), 2) == [4, 5]
    assert Lookup([1, 2, 3, 4]).guesses(1, Free(), 3) == []
    assert len(Lookup([*range(40), 0, 1, 2]).guesses(1, Free(), 99)) == MOST


def test_it_stops_where_it_does_not_pay_and_tries_again() -> None:
    costs = PassCosts()
    for rows in (1, 2, 4, 8) * 8:
        costs.passed(rows, 0.004 + 0.001 * rows)
    assert costs.of(8) / costs.of(1) == pytest.approx(12 / 5, rel=0.01)
    assert costs.of(8) < costs.of(9) < 1.2 * costs.of(8)
    lookup = Lookup([1, 2, 3, 4, 5, 6, 1, 2, 3])
    assert lookup.guesses(1, costs, 8)
    for _ in range(12):
        lookup.judged(2, 0)
    assert lookup.guesses(1, costs, 8) == []
    assert any(lookup.guesses(1, costs, 8) for _ in range(100))
    for _ in range(12):
        lookup.judged(2, 2)
    assert len(lookup.guesses(1, costs, 8)) >= 3
    expensive = PassCosts()
    for rows in (1, 2, 4, 8) * 8:
        expensive.passed(rows, 0.001 * rows)  # a row costs a pass: nothing to gain
    assert lookup.guesses(1, expensive, 8) == []


def test_slow_passes_now_and_then_change_nothing() -> None:
    """Others use the processors too: what a size costs is what it costs when nobody disturbs."""
    random = np.random.default_rng(0)
    costs = PassCosts()
    for number in range(400):
        rows = 1 if number % 10 else 9
        disturbed = 0.05 if rows == 1 and random.random() < 0.3 else 0.0
        costs.passed(rows, 0.003 + 0.001 * rows + disturbed)
    assert costs.of(9) / costs.of(1) == pytest.approx(3)
    doubtful = Lookup([1, 2, 3, 4, 5, 6, 1, 2, 3])
    for _ in range(12):
        doubtful.judged(2, 0)
    assert doubtful.guesses(1, costs, 8) == []


def test_a_size_that_was_slow_when_it_was_tried_is_tried_again() -> None:
    costs = PassCosts()
    costs.passed(2, 0.5)
    for _ in range(200):
        costs.passed(1, 0.003)
    assert costs.of(2) == 0.5
    for _ in range(200):
        costs.passed(1, 0.003)
    assert costs.of(2) == pytest.approx(0.003 * 5 / 4)
