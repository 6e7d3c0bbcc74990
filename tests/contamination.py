"""Random requests on one scheduler, each compared to the bit with the same request run alone on a cold program."""

from __future__ import annotations

import hashlib
import queue
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from loragraft.adapters.lora import Adapter
from loragraft.backends.batch import Piece as Rows
from loragraft.backends.program import Program
from loragraft.inference.sampling import Sampler, Sampling
from loragraft.inference.scheduler.loop import Scheduler
from loragraft.inference.scheduler.request import Done, Event, Failed, Floats, Ids, Request

_TEXT = "the king of Judah spake unto his people and said what say you of bread and wine"
WORDS = _TEXT.split(" ")


class Recorder:
    """A constraint that forbids nothing and keeps the digest of all logits that it is shown."""

    def __init__(self) -> None:
        self.digests: list[str] = []

    def mask(self, logits: Floats) -> None:
        self.digests.append(hashlib.sha256(logits.tobytes()).hexdigest())

    def accept(self, token: int) -> bool:
        return False


@dataclass
class Asked:
    """A request, what it records, and its events."""

    prompt: Ids
    adapters: tuple[tuple[str, float], ...]
    sampling: Sampling
    tokens: int
    events: queue.SimpleQueue[Event] = field(default_factory=queue.SimpleQueue)
    recorder: Recorder = field(default_factory=Recorder)

    def __post_init__(self) -> None:
        self.request = Request(
            self.prompt,
            emit=self.events.put,
            adapters=self.adapters,
            max_tokens=self.tokens,
            sampling=self.sampling,
            constraint=lambda: self.recorder,
        )

    def end(self) -> Done | Failed:
        while not isinstance(event := self.events.get(timeout=120), Done | Failed):
            pass
        return event


def draw(random: np.random.Generator, names: list[str], shared: list[Ids], vocabulary: int) -> Asked:
    """A random request: half of them begin with a prompt that others begin with too."""
    own = random.integers(2, vocabulary, random.integers(1, 24)).astype(np.int32)
    prompt = own
    if random.random() < 0.6:
        begin = shared[random.integers(len(shared))]
        prompt = np.concatenate([begin[: random.integers(1, len(begin) + 1)], own[: random.integers(0, 6)]])
    count = int(random.integers(0, 3))
    chosen = random.choice(len(names), min(count, len(names)), replace=False) if names else []
    adapters = tuple((names[i], float(random.choice([0.25, 0.5, 1.0, -0.5]))) for i in chosen)
    sampling = Sampling(temperature=float(random.choice([0.0, 1.0])), seed=int(random.integers(1000)))
    return Asked(prompt, adapters, sampling, int(random.integers(1, 7)))


def alone(program: Program, asked: Asked, slots: dict[str, int], end_ids: frozenset[int]) -> list[str]:
    """The digests of the logits when nothing else runs and nothing is known."""
    sequence = program.open_sequence()
    chosen = tuple((slots[name], strength) for name, strength in asked.adapters)
    sampler = Sampler(asked.sampling)
    digests = []
    tokens = asked.prompt
    try:
        for _ in range(asked.tokens):
            logits = program.run([Rows(sequence, tokens, chosen, "last")])[0]
            digests.append(hashlib.sha256(logits.tobytes()).hexdigest())
            token = sampler.pick(logits)
            if token in end_ids:
                break
            tokens = np.array([token], np.int32)
    finally:
        program.close_sequence(sequence)
    return digests


def storm(
    scheduler: Scheduler,
    cold: Program,
    adapters: dict[str, Adapter],
    paths: dict[str, Path],
    vocabulary: int,
    end_ids: frozenset[int],
    *,
    requests: int,
    seed: int,
    at_once: int = 24,
) -> dict[str, int]:
    """Run `requests` random requests, some of which are cancelled, while adapters are unregistered and registered.
    Returns counts: finished, cancelled, differing. `cold` runs each finished one again, alone."""
    random = np.random.default_rng(seed)
    shared = [random.integers(2, vocabulary, 20).astype(np.int32) for _ in range(4)]
    slots = {name: cold.add_adapter(adapter) for name, adapter in adapters.items()}
    counts = {"finished": 0, "cancelled": 0, "failed": 0, "differing": 0}
    waiting: list[Asked] = []

    def settle(asked: Asked) -> None:
        if isinstance(asked.end(), Failed):
            counts["failed"] += 1
            return
        counts["finished"] += 1
        if asked.recorder.digests != alone(cold, asked, slots, end_ids):
            counts["differing"] += 1

    for _ in range(requests):
        asked = draw(random, list(adapters), shared, vocabulary)
        scheduler.submit(asked.request)
        if random.random() < 0.1:
            scheduler.cancel(asked.request)
            counts["cancelled"] += 1
        else:
            waiting.append(asked)
        if random.random() < 0.05:
            name = list(adapters)[random.integers(len(adapters))]
            scheduler.shelf.register(name, paths[name])  # dropped and read again
        while len(waiting) >= at_once:
            settle(waiting.pop(int(random.integers(len(waiting)))))
    for asked in waiting:
        settle(asked)
    return counts
