from __future__ import annotations

import numpy as np
import pytest

from loragraft.errors import LoragraftError
from loragraft.inference.sampling import Sampler, Sampling

# Probabilities 0.5, 0.25, 0.15, 0.06, 0.04 at the ids 3, 0, 4, 1, 2.
PROBABILITIES = np.array([0.25, 0.06, 0.04, 0.5, 0.15])
LOGITS = np.log(PROBABILITIES).astype(np.float32)
OFF = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}


def kept(**options: float) -> list[int]:
    return Sampler(Sampling(**{**OFF, **options})).candidates(LOGITS)[0].tolist()  # type: ignore[arg-type]


def test_filters() -> None:
    assert kept() == [3, 0, 4, 1, 2]
    assert kept(top_k=2) == [3, 0]
    assert kept(top_k=100) == [3, 0, 4, 1, 2]
    assert kept(top_p=0.74) == [3, 0]
    assert kept(top_p=0.76) == [3, 0, 4]
    assert kept(top_p=1e-9) == [3]
    assert kept(min_p=0.29) == [3, 0, 4]
    assert kept(min_p=1.0) == [3]
    assert kept(top_k=3, top_p=0.8) == [
        3,
        0,
    ]  # top-p sees the probabilities that top-k left: 0.556, 0.278, 0.167


def test_ties_go_to_the_lower_id() -> None:
    logits = np.array([1, 2, 2, 2, 0], dtype=np.float32)
    assert Sampler(Sampling(**{**OFF, "top_k": 2})).candidates(logits)[0].tolist() == [1, 2]
    assert Sampler(Sampling(temperature=0)).pick(logits) == 1


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_follow_the_tempered_probabilities(temperature: float) -> None:
    sampler = Sampler(Sampling(temperature, 0, 1.0, 0.0, seed=7))
    n = 20_000
    counts = np.bincount([sampler.pick(LOGITS) for _ in range(n)], minlength=5)
    expected = PROBABILITIES ** (1 / temperature)
    expected /= expected.sum()
    assert np.abs(counts / n - expected).max() < 4 * np.sqrt(0.25 / n)


def test_seed() -> None:
    def draw(seed: int | None) -> list[int]:
        sampler = Sampler(Sampling(seed=seed))
        return [sampler.seed, *(sampler.pick(LOGITS) for _ in range(50))]

    assert draw(5) == draw(5)
    assert draw(5)[1:] != draw(6)[1:]
    first = draw(None)
    assert draw(first[0]) == first


@pytest.mark.parametrize(
    "options", [{"temperature": -1}, {"temperature": float("nan")}, {"top_p": 0}, {"min_p": 2}, {"top_k": -1}]
)
def test_out_of_range(options: dict[str, float]) -> None:
    with pytest.raises(LoragraftError, match=f"{next(iter(options))}: out of range"):
        Sampling(**options)  # type: ignore[arg-type]
