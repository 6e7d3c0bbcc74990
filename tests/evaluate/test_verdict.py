"""Standard errors against resampling, and the sentences that depend on them."""

from __future__ import annotations

import numpy as np
import pytest

from loragraft.evaluate.deployment import Deployment
from loragraft.evaluate.uncertainty import Estimate, mean, share_kept
from loragraft.evaluate.verdict import (
    Candidate,
    budget_verdict,
    percent_text,
    recommendation,
    smallest,
    verdict,
)
from loragraft.inference.perplexity import Perplexity

RNG = np.random.default_rng(0)
#: Divergences [windows, tokens] whose windows differ among themselves, and those of a base that goes with them.
WINDOWS = np.exp(RNG.normal(0, 0.5, (40, 1))) * RNG.exponential(0.01, (40, 50))
BASE = 20 * WINDOWS + RNG.exponential(0.5, WINDOWS.shape)


def test_errors_are_those_of_resampled_windows() -> None:
    rows = RNG.integers(0, len(WINDOWS), (4000, len(WINDOWS)))
    means = [WINDOWS[chosen].mean() for chosen in rows]
    shares = [1 - WINDOWS[chosen].mean() / BASE[chosen].mean() for chosen in rows]
    assert mean(WINDOWS).value == WINDOWS.mean()
    assert mean(WINDOWS).error == pytest.approx(np.std(means), rel=0.05)
    assert share_kept(WINDOWS, BASE).value == 1 - WINDOWS.mean() / BASE.mean()
    assert share_kept(WINDOWS, BASE).error == pytest.approx(np.std(shares), rel=0.05)
    independent = WINDOWS.std() / np.sqrt(WINDOWS.size)
    assert mean(WINDOWS).error > 1.5 * independent


def test_few_windows_that_agree_by_chance_prove_nothing() -> None:
    values = np.array([[0.0, 2.0, 1.0], [2.0, 1.0, 0.0]])  # the same mean twice
    assert mean(values).error == pytest.approx(values.std() / np.sqrt(5))
    assert mean(values[:1]).error == pytest.approx(values[0].std() / np.sqrt(2))
    assert mean(np.full((3, 4), 0.25)) == Estimate(0.25, 0.0)


def test_surely_above_and_below() -> None:
    assert Estimate(0.993, 0.001).at_least(0.99)
    assert not Estimate(0.991, 0.001).at_least(0.99)
    assert not Estimate(0.991, 0.001).below(0.99)
    assert not Estimate(0.989, 0.001).below(0.99)
    assert Estimate(0.987, 0.001).below(0.99)


SAME_BASE = np.full((10, 100), 1.0)
NOISE = np.random.default_rng(0).normal(0, 0.01, (10, 100))


@pytest.mark.parametrize(
    ("merged", "runtime", "says"),
    [
        (
            0.1 + NOISE,
            0.02 + NOISE,
            "The adapter at run time keeps more of the fine-tune: 98.0 % of what it changed",
        ),
        (0.02 + NOISE, 0.1 + NOISE, "Merging before quantizing keeps more of the fine-tune: 98.0 %"),
        (0.05 + NOISE, 0.05 - NOISE, "Both keep the fine-tune equally well"),
        (1.5 + NOISE, 1.2 + NOISE, "Neither keeps the fine-tune"),
    ],
)
def test_merged_against_run_time(merged: np.ndarray, runtime: np.ndarray, says: str) -> None:
    assert verdict(merged, runtime, SAME_BASE).startswith(says)


def test_an_adapter_that_does_nothing() -> None:
    nothing = np.zeros((10, 100))
    assert verdict(NOISE**2, NOISE**2, nothing).startswith("The adapter changes nothing on this text")


SMALL = Candidate("merged, Q3_K_M", 2_000_000, Estimate(0.97, 0.001))
UNSURE = Candidate("merged, IQ4_XS", 2_400_000, Estimate(0.9905, 0.0004))
SURE = Candidate("merged, Q4_K_M", 2_600_000, Estimate(0.995, 0.0001))
LARGE = Candidate("Q4_K_M + adapter", 3_200_000, Estimate(0.9951, 0.0001))


@pytest.mark.parametrize(
    ("candidates", "says"),
    [
        (
            [LARGE, SMALL, SURE],
            "The smallest that keeps 99 % of the fine-tune: merged, Q4_K_M (2.6 MB, 99.50 ± 0.01 %).",
        ),
        (
            [SMALL, UNSURE, SURE],
            "The smallest that keeps 99 % of the fine-tune: merged, Q4_K_M (2.6 MB, 99.50 ± 0.01 %). "
            "merged, IQ4_XS (2.4 MB, 99.05 ± 0.04 %) may too: this text is too short to tell.",
        ),
        (
            [SMALL, UNSURE],
            "None is sure to keep 99 % of the fine-tune. merged, IQ4_XS (2.4 MB, 99.05 ± 0.04 %) may too: this text is "
            "too short to tell.",
        ),
        (
            [SMALL],
            "None keeps 99 % of the fine-tune; merged, Q3_K_M (2.0 MB, 97.0 ± 0.1 %) comes closest. "
            "Take a larger type.",
        ),
    ],
)
def test_what_to_take(candidates: list[Candidate], says: str) -> None:
    assert recommendation(candidates, 0.99) == says


def test_of_equals_the_first() -> None:
    twin = Candidate("other", SURE.size, SURE.kept)
    assert smallest([SURE, twin], 0.99) is SURE
    assert smallest([SMALL], 0.99) is None


def test_decimals_follow_the_error() -> None:
    texts = [percent_text(Estimate(0.99411, error)) for error in (0.02, 0.0003, 0.000004, 0.0)]
    assert texts == ["99.4 ± 2.0 %", "99.41 ± 0.03 %", "99.4110 ± 0.0004 %", "99.4 ± 0.0 %"]


def deployment(label: str, size: int, kept: Estimate | None = None) -> Deployment:
    return Deployment(label, size, Perplexity(60, 1, 1000, 10), None, kept)


SPREAD = (NOISE - NOISE.mean()) / 4
CHOSEN = deployment("chosen", 2_620_000, Estimate(0.98, 0.001))
MIX, LARGER = deployment("Q4_K_M", 2_621_000, Estimate(0.96, 0.001)), deployment("Q5_K_S", 2_882_000)


@pytest.mark.parametrize(
    ("mix", "larger", "says"),
    [
        (
            0.04 - 4 * SPREAD,
            0.02 + SPREAD[::-1],
            "The chosen types lose 50.0 ± 0.6 % less than Q4_K_M (2.62 MB against 2.62 MB): mean KL 0.02 against 0.04, "
            "98.0 ± 0.1 % of the fine-tune kept against 96.0 ± 0.1 %. They are as good as Q5_K_S, which is 10 % larger "
            "(mean KL 0.02).",
        ),
        (
            0.04 - 4 * SPREAD,
            0.03 + SPREAD,
            "They are better than Q5_K_S, which is 10 % larger (mean KL 0.03).",
        ),
        (
            0.04 - 4 * SPREAD,
            0.01 + SPREAD,
            "They are not as good as Q5_K_S, which is 10 % larger (mean KL 0.01).",
        ),
        (
            0.02 + SPREAD[::-1],
            0.01 + SPREAD,
            "The chosen types are no better than Q4_K_M on this text: mean KL 0.02 against 0.02, 98.0 ± 0.1 % of the "
            "fine-tune kept against 96.0 ± 0.1 %, no more apart than chance. Take Q4_K_M.",
        ),
        (
            0.01 + SPREAD,
            0.01 + SPREAD,
            "The chosen types are worse than Q4_K_M on this text: mean KL 0.02 against 0.01, 98.0 ± 0.1 % of the "
            "fine-tune kept against 96.0 ± 0.1 %. Take Q4_K_M.",
        ),
    ],
)
def test_chosen_types_against_mixes(mix: np.ndarray, larger: np.ndarray, says: str) -> None:
    sentence = budget_verdict(CHOSEN, 0.02 + SPREAD, [(MIX, mix), (LARGER, larger)])
    assert sentence == says or (says.startswith("They") and sentence.endswith(says))
