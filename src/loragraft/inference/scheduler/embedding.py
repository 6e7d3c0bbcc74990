"""Hidden states of texts: what stands behind the last norm, pooled."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from loragraft.arrays import Floats, Ids
from loragraft.backends.batch import Piece as Rows
from loragraft.backends.program import Program
from loragraft.errors import LoragraftError
from loragraft.graph.chains import find_chains
from loragraft.inference.scheduler.request import Pooling

LONGEST = 512
"""Tokens of the texts that one pass of the engine reads."""


class _Enough(Exception):
    """All hidden states were seen: what the pass would still compute, nobody wants."""


class HiddenStates:
    """Watches a program's last product, whose input they are."""

    def __init__(self, program: Program) -> None:
        self._program = program
        chains = {chain.result: chain for chain in find_chains(program.graph)}
        output = program.graph.output
        self._weight = chains[output].weight if output in chains else None

    def beside(self, pieces: list[Rows]) -> tuple[Floats, Floats]:
        """The logits of a batch, and the hidden states of the same rows."""
        hidden: list[Floats] = []
        logits = self._observed(pieces, hidden, None)
        assert logits is not None
        return logits, np.concatenate(hidden)

    def alone(self, pieces: list[Rows]) -> Floats:
        """The hidden states of whole texts, at most `LONGEST` tokens together or one text. No logits are computed: the
        pass is given up where they would be, and leaves the sequences as they were."""
        hidden: list[Floats] = []
        self._observed(pieces, hidden, sum(len(piece.tokens) for piece in pieces))
        return np.concatenate(hidden)

    def _observed(self, pieces: list[Rows], hidden: list[Floats], enough: int | None) -> Floats | None:
        def observe(weights: tuple[str, ...], x: Floats, ids: Ids | None) -> None:
            if self._weight in weights:
                hidden.append(x.copy())
                if sum(map(len, hidden)) == enough:
                    raise _Enough

        self._program.observer = observe
        try:
            return self._program.run(pieces)
        except _Enough:
            return None
        finally:
            self._program.observer = None


class Pooled:
    """The mean of a text's hidden states, or its last, brought to length 1; it comes in parts."""

    def __init__(self, pooling: Pooling) -> None:
        self._pooling = pooling
        self._sum: npt.NDArray[np.float64] | None = None

    def add(self, hidden: Floats) -> None:
        """More of the text: float32 [tokens, d]."""
        if self._pooling == "last" or self._sum is None:
            self._sum = np.zeros(hidden.shape[1], np.float64)
        self._sum += hidden.sum(axis=0, dtype=np.float64) if self._pooling == "mean" else hidden[-1]

    def vector(self, subject: str) -> Floats:
        """float32 [d]. Raises LoragraftError, naming `subject`, for what is not finite."""
        assert self._sum is not None
        length = np.sqrt(np.square(self._sum).sum())
        if not np.isfinite(length):
            raise LoragraftError(subject, "the model's hidden states are not finite", found=length)
        return np.asarray(self._sum / (length or 1.0), np.float32)
