"""What a format is for the fuzzer: how a mutant of it is made, and what reads it."""

from __future__ import annotations

import hashlib
import random
from abc import ABC, abstractmethod
from pathlib import Path

from fuzz.mutate import mutated_bytes


class Format(ABC):
    """`mutant` writes one into the folder and says where; `read` reads it and may raise LoragraftError alone."""

    #: Of 1000 mutants, how many are of this format.
    share: int

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "mutant"
        self.interesting: list[bytes] = []
        """Mutants that led somewhere new; others are made of them."""

    @abstractmethod
    def mutant(self, rng: random.Random) -> Path: ...

    @abstractmethod
    def read(self, path: Path) -> None: ...

    def learn(self, corpus: Path, rng: random.Random) -> None:  # noqa: B027, formats of several files do not
        """Build on what earlier runs left in `corpus`, and leave there what leads somewhere new."""

    def keep(self, path: Path, outcome: str) -> None:  # noqa: B027
        """It led somewhere new."""


class Binary(Format):
    """Files of bytes, changed as bytes."""

    seeds: list[bytes]
    corpus: Path

    def learn(self, corpus: Path, rng: random.Random) -> None:
        self.corpus = corpus
        corpus.mkdir(parents=True, exist_ok=True)
        found = sorted(corpus.iterdir())
        self.interesting = [path.read_bytes() for path in rng.sample(found, min(100, len(found)))]

    def keep(self, path: Path, outcome: str) -> None:
        if len(self.interesting) < 200 and path.stat().st_size < 1 << 20:
            self.interesting.append(path.read_bytes())
            kept = self.corpus / hashlib.sha256(outcome.encode()).hexdigest()[:16]
            if not kept.exists():
                kept.write_bytes(self.interesting[-1])

    def mutant(self, rng: random.Random) -> Path:
        pool = [*self.seeds * 4, *self.interesting]
        self.path.write_bytes(self.changed(rng, rng.choice(pool), pool))
        return self.path

    def changed(self, rng: random.Random, data: bytes, pool: list[bytes]) -> bytes:
        return mutated_bytes(rng, data, pool)
