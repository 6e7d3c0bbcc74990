"""One sequence at a time: what callers run until they run programs (`backends.program`)."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from loragraft.backends import program
from loragraft.backends.batch import Floats, Ids, Piece
from loragraft.backends.program import Options, Program, Weights
from loragraft.errors import GraphError
from loragraft.graph.ops import Graph, Op


class Session(ABC):
    """One sequence of tokens and its key-value cache, for one thread at a time."""

    def __init__(self, vocabulary: int, context: int | None) -> None:
        self._vocabulary = vocabulary
        self._context = context
        self._turn = threading.Lock()
        self.n_past = 0
        """How many tokens the cache holds; the next token's position."""
        self.n_resets = 0
        """How often it was rewound: who continues a sequence can tell by it that the sequence is still the same."""

    def forward(self, ids: Ids, *, last_only: bool = False) -> Floats:
        """Append `ids` (int32 [T], T >= 1) to the sequence.

        Returns logits float32 [T, vocab], or [1, vocab] for the last token alone. Raises GraphError if a token is
        outside the vocabulary, the context is full, or another thread uses the session.
        """
        with self._mine():
            return self._append(self._checked(ids), last_only)

    def reset(self, n_past: int = 0) -> None:
        """Forget everything after the first `n_past` tokens. Raises GraphError, also if another thread uses it."""
        with self._mine():
            if not 0 <= n_past <= self.n_past:
                raise GraphError(
                    "session", "cannot rewind", found=n_past, expected=f"0 to {self.n_past} tokens"
                )
            self._rewind(n_past)
            self.n_past = n_past
            self.n_resets += 1

    @abstractmethod
    def _append(self, ids: Ids, last_only: bool) -> Floats:
        """`forward` for tokens that were checked; adds to `n_past` what the cache has taken."""

    def _rewind(self, n_past: int) -> None:  # noqa: B027 (not every cache has something to drop)
        """Drop what the cache holds after `n_past` tokens."""

    @contextmanager
    def _mine(self) -> Iterator[None]:
        if not self._turn.acquire(blocking=False):
            raise GraphError("session", "is in use by another thread", hint="load one model for each thread")
        try:
            yield
        finally:
            self._turn.release()

    def _checked(self, ids: Ids) -> Ids:
        ids = np.ascontiguousarray(ids, np.int32)
        if ids.ndim != 1 or not len(ids):
            raise GraphError("session", "tokens must be a list of at least one", found=f"shape {ids.shape}")
        if ids.min() < 0 or ids.max() >= self._vocabulary:
            wrong = ids[(ids < 0) | (ids >= self._vocabulary)][0]
            raise GraphError("session", "no such token", found=wrong, expected=f"0 to {self._vocabulary - 1}")
        if self._context is not None and self.n_past + len(ids) > self._context:
            raise GraphError(
                "session",
                "the context is full",
                found=self.n_past + len(ids),
                expected=f"up to {self._context} tokens",
            )
        return ids


def vocabulary_of(graph: Graph) -> int:
    """How many tokens there are: the embedding's rows."""
    return next(graph.tensors[node.weights[0]].shape[0] for node in graph.nodes if node.op is Op.EMBED)


class ProgramSession(Session):
    """A program's only sequence."""

    def __init__(self, own: Program) -> None:
        super().__init__(vocabulary_of(own.graph), own.options.context)
        self.program = own
        self._sequence = own.open_sequence()

    def _append(self, ids: Ids, last_only: bool) -> Floats:
        logits = self.program.run([Piece(self._sequence, ids, wants="last" if last_only else "all")])
        self.n_past += len(ids)
        return logits

    def _rewind(self, n_past: int) -> None:
        self.program.truncate_sequence(self._sequence, n_past)


class Backend(program.Backend):
    """Runs graphs."""

    def open(self, graph: Graph, weights: Weights, options: Options | None = None) -> Session:
        """As `prepare`, for one sequence."""
        return ProgramSession(self.prepare(graph, weights, options))
