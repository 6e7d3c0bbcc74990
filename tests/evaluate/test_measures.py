"""Windows, perplexity and divergence against values worked out by hand or written out in the plainest way."""

from __future__ import annotations

from math import exp, log

import numpy as np
import pytest

from loragraft.errors import LoragraftError
from loragraft.evaluate.divergence import DivergenceMeter, kl
from loragraft.evaluate.reading import read_beside
from loragraft.inference.measurement import Text
from loragraft.inference.perplexity import Meter, log_softmax, losses, perplexity


class Bigram:
    """A toy model: the next token depends on the last one only. Remembers what it was asked to read."""

    def __init__(self, vocab: int = 11, seed: int = 3) -> None:
        self.table = np.random.default_rng(seed).normal(size=(vocab, vocab)).astype(np.float32)
        self.seen: list[list[int]] = []

    def logits(self, ids: np.ndarray, *, first: int = 0) -> np.ndarray:
        self.seen.append(ids.tolist())
        return self.table[ids[first:]]


def test_windows_by_hand() -> None:
    ids = np.arange(100, 119, dtype=np.int32)  # 19 tokens: two windows of 8, three tokens dropped
    text = Text(ids, 8, bos=7)
    first, second = text
    assert len(text) == 2
    assert first.ids.tolist() == [7, 101, 102, 103, 104, 105, 106, 107]
    assert second.ids.tolist() == [7, 109, 110, 111, 112, 113, 114, 115]
    # Positions 4, 5, 6 predict the tokens at 5, 6, 7.
    assert (first.scored.start, first.scored.stop) == (4, 7)
    assert first.targets.tolist() == [105, 106, 107]
    assert second.targets.tolist() == [113, 114, 115]
    assert ids[0] == 100  # the caller's tokens are left alone
    assert next(iter(Text(ids, 8, bos=None))).ids[0] == 100
    assert len(list(Text(ids, 8, None, windows=1))) == len(Text(ids, 8, None, windows=1)) == 1


def test_perplexity_written_out() -> None:
    model = Bigram()
    ids = np.random.default_rng(0).integers(0, 11, 45).astype(np.int32)
    terms = []
    for start in (0, 10, 20, 30):
        for position in range(5, 9):
            last, following = ids[start + position], ids[start + position + 1]
            row = [exp(float(x)) for x in model.table[last]]
            terms.append(-log(row[following] / sum(row)))
    result = perplexity(model, Text(ids, context=10, bos=0))
    assert result.value == pytest.approx(exp(sum(terms) / len(terms)), rel=1e-12)
    assert (result.tokens, result.windows) == (16, 4)
    spread = np.std(terms) / np.sqrt(len(terms) - 1)
    assert result.error == pytest.approx(result.value * spread, rel=1e-9)
    assert [seen[0] for seen in model.seen] == [0, 0, 0, 0]


def test_too_short_or_too_narrow() -> None:
    with pytest.raises(LoragraftError, match="found 15 tokens, expected 16 or more, two windows of 8"):
        Text(np.zeros(15, np.int32), context=8, bos=None)
    with pytest.raises(LoragraftError, match="too small"):
        Text(np.zeros(15, np.int32), context=2, bos=None)


def test_log_softmax_is_stable() -> None:
    logits = np.array([[1e4, 1e4, -1e4], [-1e4, 0, 0]], np.float32)
    assert log_softmax(logits)[:, 1].tolist() == pytest.approx([-log(2), -log(2)])
    assert losses(log_softmax(logits), np.array([0, 2], np.int32)).tolist() == pytest.approx([log(2), log(2)])


def test_meter_survives_an_exploded_model() -> None:
    meter = Meter()
    meter.add(np.array([1e5, 2e5]))
    assert meter.result().value == float("inf")


def test_kl_by_hand_and_its_direction() -> None:
    p, q = np.array([[0.5, 0.25, 0.25]]), np.array([[0.25, 0.25, 0.5]])
    forward = 0.5 * log(2) + 0.25 * log(0.5)
    assert kl(np.log(p), np.log(q)).tolist() == pytest.approx([forward])
    p = np.array([[0.9, 0.1]])
    q = np.array([[0.6, 0.4]])
    assert kl(np.log(p), np.log(q))[0] == pytest.approx(0.9 * log(1.5) + 0.1 * log(0.25))
    assert kl(np.log(q), np.log(p))[0] == pytest.approx(0.6 * log(0.6 / 0.9) + 0.4 * log(4))
    assert kl(np.array([[0.0, -np.inf]]), np.log(q))[0] == pytest.approx(-log(0.6))


def test_divergence_meter() -> None:
    rng = np.random.default_rng(1)
    a, b = (log_softmax(rng.normal(size=(40, 9)).astype(np.float32)) for _ in range(2))
    meter = DivergenceMeter()
    meter.add(a[:25], b[:25])
    meter.add(a[25:], b[25:])
    result = meter.result()
    values = (np.exp(a) * (a - b)).sum(axis=1)
    assert result.mean == pytest.approx(values.mean())
    assert result.median == pytest.approx(np.median(values))
    assert result.maximum == pytest.approx(values.max())
    assert result.same_top == np.mean(a.argmax(1) == b.argmax(1))
    meter = DivergenceMeter()
    meter.add(a, a)
    assert (meter.result().mean, meter.result().same_top) == (0, 1)


def test_reading_beside_the_fine_tune() -> None:
    text = Text(np.arange(32, dtype=np.int32) % 11, 8, None)
    perplexity, readings = read_beside(Bigram(), {"same": Bigram(), "other": Bigram(seed=4)}, text)
    assert (readings["same"].divergence.mean, readings["same"].perplexity) == (0, perplexity)
    assert readings["other"].divergence.mean == readings["other"].kl.mean() > 0.1
    assert readings["other"].kl.shape == (4, 3)
