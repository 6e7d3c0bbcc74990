"""The allocation against trying everything."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from loragraft.errors import QuantizeError
from loragraft.quants.allocation import Choice, allocate, allocate_cost, hull
from loragraft.quants.types import BY_NAME

TYPES = [BY_NAME[name] for name in ("Q2_K", "Q3_K", "Q4_K", "Q6_K")]


def problem(seed: int, tensors: int = 7) -> dict[str, list[Choice]]:
    """Tensors of several sizes whose cost falls about fourfold with each bit, some much dearer than others."""
    rng = np.random.default_rng(seed)
    choices = {}
    for index in range(tensors):
        blocks, weight = int(rng.integers(1, 12)), float(np.exp(rng.normal(0, 1.5)))
        choices[f"t{index}"] = [
            Choice(
                kind,
                blocks * kind.bytes,
                weight * 4**-kind.bits_per_weight * float(np.exp(rng.normal(0, 0.2))),
            )
            for kind in TYPES
        ]
    return choices


def cost(chosen: dict[str, Choice]) -> float:
    return sum(choice.cost for choice in chosen.values())


def size(chosen: dict[str, Choice]) -> int:
    return sum(choice.size for choice in chosen.values())


def best(choices: dict[str, list[Choice]], limit: int) -> float:
    """The least cost of all combinations that fit."""
    fitting = (all_ for all_ in itertools.product(*choices.values()) if sum(c.size for c in all_) <= limit)
    return min(sum(choice.cost for choice in chosen) for chosen in fitting)


@pytest.mark.parametrize("seed", range(6))
def test_as_good_as_trying_everything(seed: int) -> None:
    choices = problem(seed, 6)
    smallest = sum(min(choice.size for choice in own) for own in choices.values())
    largest = sum(max(choice.size for choice in own) for own in choices.values())
    ratios = []
    for limit in np.linspace(smallest, largest, 9).astype(int):
        chosen = allocate(choices, int(limit))
        assert size(chosen) <= limit
        ratios.append(cost(chosen) / best(choices, int(limit)))
    assert min(ratios) >= 1 - 1e-12
    assert ratios[0] == pytest.approx(1)
    assert ratios[-1] == pytest.approx(1)
    # Whole tensors cannot be cut: with six of them the last one matters. It does not with as many as models have.
    assert np.mean(ratios) < 1.12


def test_many_tensors_come_close_to_the_relaxed_optimum() -> None:
    choices = problem(1, 200)
    limit = sum(own[2].size for own in choices.values())  # as many bytes as all in Q4_K
    chosen = allocate(choices, limit)
    # The relaxed problem's bound (its dual): the least over all prices of a byte.
    bounds = [
        sum(min(c.cost + price * c.size for c in own) for own in choices.values()) - price * limit
        for price in np.geomspace(1e-12, 1e-3, 400)
    ]
    assert max(bounds) <= cost(chosen) < 1.002 * max(bounds)
    assert limit - size(chosen) < 84
    assert cost(chosen) < 0.8 * sum(own[2].cost for own in choices.values())


def test_the_fewest_bytes_for_a_cost() -> None:
    choices = problem(2, 200)
    wanted = sum(own[2].cost for own in choices.values())  # as much as all in Q4_K cost
    chosen = allocate_cost(choices, wanted)
    assert 0.99 * wanted < cost(chosen) <= wanted
    assert size(chosen) < 0.95 * sum(own[2].size for own in choices.values())
    # ... and the other way round the same bytes buy nothing better.
    assert cost(allocate(choices, size(chosen))) == pytest.approx(cost(chosen), rel=1e-3)
    with pytest.raises(QuantizeError, match="is out of reach with these types"):
        allocate_cost(choices, 0.5 * sum(min(choice.cost for choice in own) for own in choices.values()))


def test_only_the_hull_is_of_use() -> None:
    kinds = [BY_NAME[name] for name in ("Q2_K", "IQ3_XXS", "Q3_K", "Q4_K", "Q5_K")]
    worse, dominated = Choice(kinds[1], 30, 9.5), Choice(kinds[3], 45, 4.0)
    own = [Choice(kinds[0], 20, 10.0), worse, Choice(kinds[2], 40, 3.0), dominated, Choice(kinds[4], 60, 1.0)]
    assert [choice.size for choice in hull(own)] == [20, 40, 60]
    # A choice off the hull still fills a gap that no other fits in.
    assert allocate({"t": own}, 35) == {"t": worse}


def test_a_size_that_nothing_fits() -> None:
    with pytest.raises(
        QuantizeError, match="too small for these types: found 83 bytes, expected at least 84"
    ):
        allocate({"t": [Choice(BY_NAME["Q2_K"], 84, 1.0)]}, 83)
