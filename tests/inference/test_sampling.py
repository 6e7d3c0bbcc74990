from __future__ import annotations

import numpy as np
import pytest

from loragraft.errors import LoragraftError
from loragraft.inference.sampling import Sampler, Sampling, _drawn

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


def test_a_seed_draws_the_same_tokens_again() -> None:
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


@pytest.mark.parametrize("size", [3, 255, 256, 257, 3000])
def test_drawing_from_all_tokens_is_drawing_from_their_probabilities(size: int) -> None:
    random = np.random.default_rng(size)
    logits = (4 * random.standard_normal(size)).astype(np.float32)
    ends = np.exp(logits.astype(np.float64) / 0.7).cumsum()
    for place in random.random(300):
        token = _drawn(logits, 0.7, place)
        expected = int(np.searchsorted(ends, place * ends[-1], side="right"))
        assert token == expected or abs(ends[min(token, expected)] / ends[-1] - place) < 1e-6
    logits[1:] = -np.inf  # forbidden tokens are never drawn
    assert {_drawn(logits, 0.7, place) for place in (0.0, 0.5, 1 - 1e-16)} == {0}
    assert _drawn(logits, 1e-40, 0.5) == 0


@pytest.mark.parametrize("spread", [0.01, 1.0, 5.0, 30.0])
@pytest.mark.parametrize("options", [{"top_p": 0.3}, {"top_p": 0.99}, {"min_p": 0.05}, {"min_p": 1e-9}, {}])
def test_sorting_a_part_leaves_what_sorting_all_leaves(spread: float, options: dict[str, float]) -> None:
    logits = (spread * np.random.default_rng(1).standard_normal(2000)).astype(np.float32)
    order = np.argsort(-logits, kind="stable")
    probabilities = np.exp(logits[order].astype(np.float64) - logits.max())
    probabilities /= probabilities.sum()
    n = len(order)
    if "top_p" in options:
        n = int(np.searchsorted(probabilities.cumsum(), options["top_p"])) + 1
    n = min(n, int((probabilities >= options.get("min_p", 0.0) * probabilities[0]).sum()))
    ids, kept_logits = Sampler(Sampling(**{**OFF, **options})).candidates(logits)  # type: ignore[arg-type]
    assert ids.tolist() == order[:n].tolist()
    assert (kept_logits == logits[order[:n]]).all()
