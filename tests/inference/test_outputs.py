"""Replies of a program that leaves its logits on the device: the same, with less brought back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

import loragraft as lg
from gpu import WITH_DEVICES
from loragraft.arrays import Floats, Ids
from loragraft.backends.batch import Batch
from loragraft.backends.batch import Piece as Rows
from loragraft.inference.model import Model
from loragraft.inference.sampling import Sampling
from loragraft.inference.scheduler.loop import Scheduler
from loragraft.inference.scheduler.request import Done, Event, Failed, Penalties, Piece, Request
from loragraft.inference.scheduler.shelf import Shelf
from loragraft.opening import load_adapter
from paths import data

GREEDY = Sampling(temperature=0)
TEXT = "And the king said, And the king"


class Counted:
    """How many passes of a program brought back logits, and how many tokens alone."""

    def __init__(self, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
        self.logits = self.tokens = 0
        program = model.program
        forward, likeliest = program.forward, program.likeliest

        def counted_forward(batch: Batch, hidden: Floats | None = None) -> Floats:
            self.logits += bool(batch.wants.any())
            return forward(batch, hidden)

        def counted_likeliest(pieces: Sequence[Rows] | Batch) -> tuple[Ids, Floats]:
            self.tokens += 1
            return likeliest(pieces)

        monkeypatch.setattr(program, "forward", counted_forward)
        monkeypatch.setattr(program, "likeliest", counted_likeliest)


def ran(model: Model, requests: Sequence[dict[str, Any]]) -> list[list[Event]]:
    """What requests give that are all in the first batch together: all that follows is the same each time."""
    shelf = Shelf(model.program, lambda path: load_adapter(path, model.source))
    shelf.register("poet", data("llama-kjv.shakespeare"))
    shelf.preload("poet")
    scheduler = Scheduler(model.program, model.tokenizer, shelf, context=model.context_length)
    events: list[list[Event]] = [[] for _ in requests]
    scheduler._state = "running"
    for mine, settings in zip(events, requests, strict=True):
        asked: dict[str, Any] = {"max_tokens": 6, "sampling": GREEDY, **settings}
        scheduler.submit(Request(model.tokenize(TEXT), emit=mine.append, **asked))
    scheduler.start()
    scheduler.stop(300)
    return events


def texts(events: list[Event]) -> list[str]:
    assert not any(isinstance(event, Failed) for event in events), events
    assert isinstance(events[-1], Done)
    pieces = [event for event in events if isinstance(event, Piece)]
    choices = sorted({piece.choice for piece in pieces})
    return ["".join(piece.text for piece in pieces if piece.choice == choice) for choice in choices]


@pytest.fixture(scope="module")
def cpu() -> Model:
    return lg.load(data("llama-kjv"))


WHOLE: list[dict[str, Any]] = [
    {"sampling": Sampling(temperature=1.0, seed=1)},
    {"logprobs": 0},
    {"penalties": Penalties(presence=1.0)},
    {"penalties": Penalties(bias={5: 1.0})},
]


@pytest.mark.parametrize("whole", WHOLE)
def test_one_request_that_needs_logits_has_them(
    cpu: Model, monkeypatch: pytest.MonkeyPatch, whole: dict[str, Any]
) -> None:
    """On the processor `likeliest` reads the same logits: the rest of the way is that of a GPU."""
    before = [texts(each) for each in ran(cpu, [{}, whole])]
    monkeypatch.setattr(cpu.program, "reduces", True)
    counted = Counted(cpu, monkeypatch)
    assert [texts(each) for each in ran(cpu, [{}, whole])] == before
    assert counted.logits >= 1  # the prompts are read in one pass; how many follow is up to what is drawn


def test_guesses_stops_and_several_replies(cpu: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    cut = "".join(texts(ran(cpu, [{"max_tokens": 24}])[0]))[8:11]
    requests: list[dict[str, Any]] = [
        {"max_tokens": 24},
        {"max_tokens": 24, "stop": (cut,)},
        {"choices": 2, "adapters": (("poet", 0.5),)},
    ]
    before = [texts(each) for each in ran(cpu, requests)]
    monkeypatch.setattr(cpu.program, "reduces", True)
    counted = Counted(cpu, monkeypatch)
    assert [texts(each) for each in ran(cpu, requests)] == before
    assert counted.logits == 0
    assert counted.tokens >= 1


def test_what_is_not_finite_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = lg.load(data("llama-kjv"))
    monkeypatch.setattr(model.program, "reduces", True)
    ends = ran(model, [{"adapters": (("poet", 1e30),)}, {}])
    bad, good = (each[-1] for each in ends)
    assert isinstance(bad, Failed)
    assert "not finite" in str(bad.error)
    assert isinstance(good, Done)


@pytest.mark.parametrize("device", WITH_DEVICES)
def test_greedy_replies_on_a_gpu(cpu: Model, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = lg.load(data("llama-kjv"), device=device)
    counted = Counted(model, monkeypatch)
    greedy: list[dict[str, Any]] = [{}, {"adapters": (("poet", 1.0),)}]
    alone = [texts(each) for each in ran(model, greedy)]
    assert counted.logits == 0
    assert counted.tokens >= 1
    # To the bit what its own logits say, also beside a request that has them brought back.
    beside = [texts(each) for each in ran(model, [*greedy, {"logprobs": 0}])]
    assert counted.logits >= 1
    assert beside[:2] == alone
    assert beside[2] == alone[0]
