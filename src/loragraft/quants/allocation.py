"""Which type each tensor gets if all of them together may take so many bytes and the summed cost is to be least; or the
other way round.

The multiple-choice knapsack problem. Source: Sinha and Zoltners 1979, "The Multiple-Choice Knapsack Problem": of each
tensor's choices only those on the lower convex hull of (size, cost) are of use; taking the steps along all hulls in the
order of cost saved per byte solves the relaxed problem, in which one tensor may get a bit of two types. What the one
tensor that is cut leaves is then filled with whatever still fits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from loragraft.errors import QuantizeError
from loragraft.quants.types import QuantType


@dataclass(frozen=True, slots=True)
class Choice:
    """A tensor as `type`: its bytes and what it costs."""

    type: QuantType
    size: int
    cost: float


def allocate(choices: Mapping[str, Sequence[Choice]], size: int) -> dict[str, Choice]:
    """One of its choices for every name, `size` bytes at most. Raises `QuantizeError` if that is impossible."""
    hulls = {name: hull(own) for name, own in choices.items()}
    taken = {name: own[0] for name, own in hulls.items()}
    left = size - sum(choice.size for choice in taken.values())
    if left < 0:
        raise QuantizeError(
            "size", "too small for these types", found=f"{size} bytes", expected=f"at least {size - left}"
        )
    for name, larger in _steps(hulls):
        grown = larger.size - taken[name].size
        if grown > left:
            break
        left -= grown
        taken[name] = larger
    return _filled(choices, taken, left)


def allocate_cost(choices: Mapping[str, Sequence[Choice]], cost: float) -> dict[str, Choice]:
    """One of its choices for every name, few bytes in all, whose costs add up to `cost` at most. Raises `QuantizeError`
    if that is impossible."""
    hulls = {name: hull(own) for name, own in choices.items()}
    taken = {name: own[0] for name, own in hulls.items()}
    steps = _steps(hulls)
    while sum(choice.cost for choice in taken.values()) > cost:
        if not steps:
            least = sum(choice.cost for choice in taken.values())
            raise QuantizeError(
                "cost",
                "is out of reach with these types",
                found=f"{least:.3g} at least",
                expected=f"{cost:.3g}",
                hint="allow larger ones, such as Q8_0",
            )
        name, larger = steps.pop(0)
        taken[name] = larger
    return taken


def _steps(hulls: Mapping[str, Sequence[Choice]]) -> list[tuple[str, Choice]]:
    """From each choice of a hull to the next, in the order of what is gained. Along a hull the gain falls, so a name's
    steps come in their order."""
    steps = [(_gain(a, b), name, b) for name, own in hulls.items() for a, b in pairwise(own)]
    return [(name, larger) for _, name, larger in sorted(steps, key=lambda step: -step[0])]


def hull(choices: Sequence[Choice]) -> list[Choice]:
    """The choices on the lower convex hull, from the smallest to the one that costs least."""
    best: list[Choice] = []
    for choice in sorted(choices, key=lambda one: (one.size, one.cost)):
        if best and choice.cost >= best[-1].cost:
            continue
        while len(best) > 1 and _gain(best[-2], best[-1]) <= _gain(best[-1], choice):
            best.pop()
        best.append(choice)
    return best


def _gain(smaller: Choice, larger: Choice) -> float:
    """Cost saved per byte."""
    return (smaller.cost - larger.cost) / (larger.size - smaller.size)


def _filled(
    choices: Mapping[str, Sequence[Choice]], taken: dict[str, Choice], left: int
) -> dict[str, Choice]:
    """`taken` with the best change that fits in `left` bytes, again and again."""
    while True:
        changes = [
            (_gain(taken[name], choice), name, choice)
            for name, own in choices.items()
            for choice in own
            if 0 < choice.size - taken[name].size <= left and choice.cost < taken[name].cost
        ]
        if not changes:
            return taken
        _, name, larger = max(changes, key=lambda change: change[0])
        left -= larger.size - taken[name].size
        taken[name] = larger
