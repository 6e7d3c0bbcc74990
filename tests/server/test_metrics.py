"""Time series are bounded, whatever adapters come and go."""

from __future__ import annotations

import re

from loragraft.server import metrics


def series(made: metrics.Metrics) -> dict[str, float]:
    found = re.findall(r'loragraft_tokens_total\{adapter="(.*)"\} (\S+)', made.text().decode())
    return {name: float(value) for name, value in found}


def test_adapters_that_made_tokens_last_have_a_series() -> None:
    """Names that are loaded once and never again do not take the place of those in use."""
    made = metrics.Metrics()
    for number in range(3000):
        made.made((f"n{number}",), 1)
        if number % 100 == 0:
            made.made(("poet",), 2)
    found = series(made)
    assert len(found) == 1000
    assert found["poet"] == 60
    assert "n2999" in found
    assert "n0" not in found


def test_tokens_of_several_adapters_count_for_each() -> None:
    """A series for every combination has no bound: 16 of 1,000 adapters."""
    made = metrics.Metrics()
    made.made(("a", "b"), 3)
    made.made(("b", "c"), 4)
    made.made((), 5)
    assert series(made) == {"a": 3, "b": 7, "c": 4, "": 5}
