"""Perplexity as llama-perplexity computes it (tools/perplexity/perplexity.cpp of llama.cpp).

The whole text is one sequence of tokens (with BOS before it if the model wants one), cut into windows of `context`
tokens; what is left over is dropped. Each window is read on its own, with its first token replaced by BOS if the model
wants one. Only predictions made in the second half count, so that each has at least half a window behind it: position
`context // 2` predicts the first scored token. Perplexity is exp of the mean negative log-likelihood, in nats.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import exp, sqrt
from typing import Protocol

import numpy as np
import numpy.typing as npt

from loragraft.errors import LoragraftError, TextError
from loragraft.progress import SILENT, Progress
from loragraft.units import count_text, plural

Ids = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

DEFAULT_CONTEXT = 512


class Scorer(Protocol):
    """Anything that gives logits for a fresh sequence (`loragraft.inference.model.Model`)."""

    def logits(self, ids: Ids, *, first: int = 0) -> Floats:
        """float32 [len(ids) - first, vocab]: of the tokens from `first` on."""


@dataclass(frozen=True, slots=True)
class Window:
    """`ids` int32 [context] is what the model reads; `logits[scored]` predict `targets`."""

    ids: Ids
    targets: Ids
    scored: slice

    def read_by(self, model: Scorer) -> Floats:
        """The logits [n, vocab] that predict the targets [n]."""
        return model.logits(self.ids, first=self.scored.start)[: len(self.targets)]


@dataclass(frozen=True, slots=True)
class Perplexity:
    """`value` ± `error` (one standard error), over `tokens` predictions in `windows` windows."""

    value: float
    error: float
    tokens: int
    windows: int


def windows(ids: Ids, context: int, bos: int | None, *, limit: int | None = None) -> Iterator[Window]:
    """The windows of a text's tokens; `bos` None if the model wants none. Raises as `check_windows`, and LoragraftError
    for a `limit` under 1."""
    check_windows(ids, context)
    if limit is not None and limit < 1:
        raise LoragraftError("limit", "no window is left to measure", found=limit, expected="1 or more")
    first = context // 2
    for start in range(0, count(ids, context, limit) * context, context):
        window = ids[start : start + context].copy()
        targets = window[first + 1 :].copy()
        if bos is not None:
            window[0] = bos
        yield Window(window, targets, slice(first, context - 1))


def check_windows(ids: Ids, context: int, trained: int | None = None, progress: Progress = SILENT) -> None:
    """Raises TextError if a text is shorter than two windows, LoragraftError if `context` is under 4. A note says so if
    it is more than the model was `trained` for."""
    if context < 4:
        raise LoragraftError("context", "too small to score half of it", found=context, expected="4 or more")
    if len(ids) < 2 * context:
        raise TextError(
            "text",
            "too short to measure on",
            found=plural(len(ids), "token"),
            expected=f"{count_text(2 * context)} or more, two windows of {count_text(context)}",
            hint="take a longer text or a smaller context",
        )
    if trained is not None and context > trained:
        progress.note(
            f"windows of {plural(context, 'token')} are longer than the {count_text(trained)} that the model was "
            "trained for: expect it to do worse in them"
        )


def count(ids: Ids, context: int, limit: int | None = None) -> int:
    """How many windows `windows` gives."""
    whole = len(ids) // context
    return whole if limit is None else min(whole, limit)


def blocks(rows: int, columns: int) -> Iterator[slice]:
    """Runs of rows of a [rows, columns] array whose float64 temporaries stay in the processor's caches."""
    step = max(1, (1 << 17) // max(columns, 1))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def log_softmax(logits: Floats) -> Doubles:
    """Natural logarithms of the probabilities, float64 [n, vocab], of logits [n, vocab]."""
    result = np.empty(logits.shape, np.float64)
    for rows in blocks(*logits.shape):
        block = result[rows]
        np.subtract(logits[rows], logits[rows].max(axis=-1, keepdims=True), out=block, dtype=np.float64)
        block -= np.log(np.exp(block).sum(axis=-1, keepdims=True))
    return result


def losses(log_probabilities: Doubles, targets: Ids) -> Doubles:
    """Negative log-likelihoods [n] of `targets` [n] under log-probabilities [n, vocab]."""
    return -log_probabilities[np.arange(len(targets)), targets]


class Meter:
    """Sums up losses window by window."""

    def __init__(self) -> None:
        self._sum = self._squares = 0.0
        self._tokens = self._windows = 0

    def add(self, window_losses: Doubles) -> None:
        self._sum += float(window_losses.sum())
        self._squares += float((window_losses**2).sum())
        self._tokens += len(window_losses)
        self._windows += 1

    def result(self) -> Perplexity:
        mean = self._sum / self._tokens
        variance = max(self._squares / self._tokens - mean**2, 0.0)
        value = exp(mean) if mean < 700 else float("inf")
        return Perplexity(value, value * sqrt(variance / (self._tokens - 1)), self._tokens, self._windows)


def perplexity(
    model: Scorer,
    ids: Ids,
    *,
    context: int = DEFAULT_CONTEXT,
    bos: int | None,
    limit: int | None = None,
    progress: Progress = SILENT,
) -> Perplexity:
    """The perplexity of `model` on a text's tokens. Raises TextError for a text that is too short."""
    meter = Meter()
    progress.start("Perplexity", count(ids, context, limit))
    for window in windows(ids, context, bos, limit=limit):
        logits = window.read_by(model)
        parts = [losses(log_softmax(logits[rows]), window.targets[rows]) for rows in blocks(*logits.shape)]
        meter.add(np.concatenate(parts))
        progress.advance(1)
    return meter.result()
