"""How far a model's predictions are from a reference model's, token by token.

KL(P || Q) = sum of p log(p / q), P the reference: what is lost by predicting with Q where P was meant; and how often
both think the same token the likeliest. As llama-perplexity --kl-divergence does it (tools/perplexity/perplexity.cpp).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import numpy as np

from loragraft.arrays import Doubles
from loragraft.inference.perplexity import blocks


@dataclass(frozen=True, slots=True)
class Divergence:
    """Over all scored tokens: KL in nats; `same_top` is a fraction."""

    mean: float
    error: float
    """One standard error of the mean."""
    median: float
    p99: float
    maximum: float
    same_top: float


def kl(reference: Doubles, other: Doubles) -> Doubles:
    """KL(reference || other) [n] of log-probabilities [n, vocab]."""
    result = np.empty(len(reference))
    for rows in blocks(*reference.shape):
        block = reference[rows]
        with np.errstate(invalid="ignore"):  # 0 * (-inf - x): a token the reference excludes costs nothing
            terms = np.exp(block)
            terms *= block - other[rows]
        terms[np.isneginf(block)] = 0.0
        result[rows] = terms.sum(axis=-1)
    return result


def same_top(reference: Doubles, other: Doubles) -> int:
    """How many of the tokens have the same likeliest one, of log-probabilities [n, vocab]."""
    return int((reference.argmax(axis=-1) == other.argmax(axis=-1)).sum())


class DivergenceMeter:
    """Collects window by window."""

    def __init__(self) -> None:
        self._kl: list[Doubles] = []
        self._same = 0

    def add(self, reference: Doubles, other: Doubles) -> None:
        """Log-probabilities [n, vocab] of the same tokens."""
        self.add_window(kl(reference, other), same_top(reference, other))

    def add_window(self, values: Doubles, same: int) -> None:
        """KL of the tokens of a window, and for how many of them both think the same the likeliest."""
        self._kl.append(values)
        self._same += same

    def values(self) -> Doubles:
        """KL of every token so far, in order [n]."""
        return np.concatenate(self._kl)

    def by_window(self) -> Doubles:
        """KL of every token so far [windows, tokens], if all windows had as many."""
        return np.stack(self._kl)

    def result(self) -> Divergence:
        values = self.values()
        median, p99 = np.percentile(values, [50, 99])
        return Divergence(
            mean=float(values.mean()),
            error=float(values.std() / sqrt(max(len(values) - 1, 1))),
            median=float(median),
            p99=float(p99),
            maximum=float(values.max()),
            same_top=self._same / len(values),
        )
