"""What reads a text has the same result by any number of workers, to the bit."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
import pytest

import loragraft as lg
from loragraft.errors import LoragraftError
from loragraft.evaluate import reading
from loragraft.inference import spreading
from loragraft.system.workers.processes import ProcessCrew
from paths import ROOT, data

BASE, ADAPTER = data("llama-kjv"), data("llama-kjv.shakespeare")
TEXT = (ROOT / "examples" / "shakespeare-valid.txt").read_text()
HOW = lg.Measurement(TEXT, context=64, windows=3, threads=1)


class Deadly(ProcessCrew):
    """Kills the first worker right after it was given a window."""

    killed = 0

    def give(self, worker: Hashable, part: Any) -> None:
        super().give(worker, part)
        if not self.killed:
            self._workers[worker].kill()  # type: ignore[index]
            self.killed += 1


def same(found: lg.Imatrix, expected: lg.Imatrix) -> bool:
    assert found.sums.keys() == expected.sums.keys()
    return all(
        np.array_equal(found.sums[name], expected.sums[name])
        and np.array_equal(found.counts[name], expected.counts[name])
        for name in expected.sums
    )


def test_importance_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = lg.imatrix(BASE, HOW, adapters=[(ADAPTER, 0.5)])
    assert same(lg.imatrix(BASE, HOW, adapters=[(ADAPTER, 0.5)], workers=2), expected)
    assert not same(lg.imatrix(BASE, HOW), expected)

    crew = Deadly(2)
    monkeypatch.setattr(spreading, "crew_of", lambda workers, threads: (crew, 1))
    assert same(lg.imatrix(BASE, HOW, adapters=[(ADAPTER, 0.5)], workers=2), expected)
    assert crew.killed == 1


def test_comparisons(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = lg.compare(BASE, [ADAPTER], HOW)
    monkeypatch.setattr(reading, "load", None)  # this process loads no model
    assert lg.compare(BASE, [ADAPTER], HOW, workers=2) == expected


def test_budgets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one layer's types: the text is read for every tensor."""
    given: dict[str, Any] = {"like": "Q4_K_M", "types": ["Q4_K", "Q6_K"], "valid_windows": 2}
    how = lg.Measurement(TEXT, context=32, windows=2, threads=1)
    expected = lg.budget(BASE, [ADAPTER], how, **given)
    monkeypatch.setattr(reading, "load", None)  # this process loads no model
    assert lg.budget(BASE, [ADAPTER], how, **given, workers=2) == expected


def test_what_workers_refuse_is_refused() -> None:
    with pytest.raises(LoragraftError, match="workers: is too small: found 0, expected at least 1"):
        lg.imatrix(BASE, HOW, workers=0)
