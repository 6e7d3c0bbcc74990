"""Perplexity as llama-perplexity computes it (tools/perplexity/perplexity.cpp of llama.cpp): exp of the mean negative
log-likelihood, in nats, of the predictions that `loragraft.inference.measurement` scores."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import exp, sqrt

import numpy as np

from loragraft.arrays import Doubles, Floats, Ids
from loragraft.inference.measurement import Scorer, Text
from loragraft.progress import SILENT, Progress


@dataclass(frozen=True, slots=True)
class Perplexity:
    """`value` ± `error` (one standard error), over `tokens` predictions in `windows` windows."""

    value: float
    error: float
    tokens: int
    windows: int


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


def perplexity(model: Scorer, text: Text, progress: Progress = SILENT) -> Perplexity:
    """The perplexity of `model` on a text's tokens."""
    meter = Meter()
    progress.start("Perplexity", len(text))
    for window in text:
        logits = window.read_by(model)
        parts = [losses(log_softmax(logits[rows]), window.targets[rows]) for rows in blocks(*logits.shape)]
        meter.add(np.concatenate(parts))
        progress.advance(1)
    return meter.result()
