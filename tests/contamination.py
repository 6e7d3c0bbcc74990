"""Random requests on one scheduler, each compared to the bit with the same request run alone on a cold program.

`make contamination REQUESTS=10000` runs many of them, in parts with seeds of their own.
"""

from __future__ import annotations

import argparse
import hashlib
import queue
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import loragraft as lg
from loragraft.adapters.lora import Adapter
from loragraft.arrays import Floats, Ids
from loragraft.backends.batch import Piece as Rows
from loragraft.backends.program import Program
from loragraft.errors import AdapterError
from loragraft.inference.sampling import Sampler, Sampling
from loragraft.inference.scheduler.loop import Scheduler
from loragraft.inference.scheduler.request import Done, Event, Failed, Request
from loragraft.inference.scheduler.shelf import Shelf, plain_only
from loragraft.opening import load_adapter
from paths import data
from served import scaled_adapter

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
    if random.random() < 0.5:  # as others have them: then prefixes are shared
        adapters = ((names[0], 0.5),) if random.random() < 0.5 else ()
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
    counts = {"finished": 0, "cancelled": 0, "refused": 0, "failed": 0, "differing": 0}
    counts |= {"unregistered": 0, "reloaded": 0, "prompt_tokens": 0, "cached_tokens": 0}
    waiting: list[Asked] = []
    away: str | None = None

    def settle(asked: Asked) -> None:
        end = asked.end()
        if isinstance(end, Failed):
            refused = isinstance(end.error, AdapterError) and "no adapter of this name" in str(end.error)
            counts["refused" if refused else "failed"] += 1
            return
        counts["finished"] += 1
        counts["prompt_tokens"] += len(asked.prompt)
        counts["cached_tokens"] += end.cached_tokens
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
        if away is not None and random.random() < 0.3:
            scheduler.shelf.register(away, paths[away])
            away = None
        elif away is None and random.random() < 0.02:  # who asks for it meanwhile is refused
            away = list(adapters)[random.integers(len(adapters))]
            scheduler.shelf.unregister(away)
            counts["unregistered"] += 1
        elif away is None and random.random() < 0.05:
            name = list(adapters)[random.integers(len(adapters))]
            scheduler.shelf.register(name, paths[name])  # dropped and read again
            counts["reloaded"] += 1
        while len(waiting) >= at_once:
            settle(waiting.pop(int(random.integers(len(waiting)))))
    for asked in waiting:
        settle(asked)
    if away is not None:
        scheduler.shelf.register(away, paths[away])
    for slot in slots.values():
        cold.drop_adapter(slot)
    return counts


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--part", type=int, default=500, help="requests on one scheduler, with one seed")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--model", type=Path, default=data("llama-kjv"), help="that, or a GGUF made of it")
    parser.add_argument("--threads", type=int, default=1, help="of the scheduler's program")
    a = parser.parse_args()
    model, cold = lg.load(a.model, threads=a.threads), lg.load(a.model, threads=1)
    total: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder) / name for name in "abcde"}
        for seed, (name, path) in enumerate(paths.items()):
            place = path if name < "d" else path / "default"  # some lie one level down
            place.parent.mkdir(exist_ok=True)
            scaled_adapter(place, 1.0, seed)
        adapters = {name: load_adapter(path, model.source) for name, path in paths.items()}
        shelf = Shelf(model.program, lambda path: plain_only(load_adapter(path, model.source)))
        for name, path in paths.items():
            shelf.register(name, path)
        # Small pieces of prompts and few kept prefixes: more ways for one request to meet another.
        scheduler = Scheduler(
            model.program, model.tokenizer, shelf, context=model.context_length, chunk=24, prefixes=40
        )
        scheduler.start()
        for seed in range(a.first, a.first + -(-a.requests // a.part)):
            counts = storm(
                scheduler,
                cold.program,
                adapters,
                paths,
                model.tokenizer.size,
                model.tokenizer.end_ids,
                requests=min(a.part, a.requests - (seed - a.first) * a.part),
                seed=seed,
            )
            total = {name: total.get(name, 0) + count for name, count in counts.items()}
            print(f"seed {seed}: {counts}", flush=True)
        scheduler.stop()
    print(f"in all: {total}")
    if total["differing"] or total["failed"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
