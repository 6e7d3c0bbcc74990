"""The grids of the IQ types as tables: the points, their numbers, and for every combination that is not a point the
points to try in its place.

A group's digits are first rounded one by one. If that combination is not a point of the grid, the nearest points (by
the distance between the digits) are tried, and the one of least weighted squared error wins. Which are tried, and in
what order, is `iq2xs_init_impl` and `iq3xs_init_impl` of ggml-quants.c: those at the `DISTANCES` smallest distances,
nearest first, then by number."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from loragraft.arrays import Floats, Ints
from loragraft.quants.arith import F
from loragraft.quants.iq_grid_points import GRIDS

DISTANCES = {"IQ2_XXS": 2, "IQ2_XS": 2, "IQ2_S": 1, "IQ1": 3, "IQ3_XXS": 2, "IQ3_S": 3}


@dataclass(frozen=True)
class Codebook:
    """`points`: digits [points, digits]. A combination's number has its first digit least significant, in `base`."""

    base: int
    points: Ints
    index: Ints
    """Of every combination: its point's number, or -1."""
    first: Ints
    """Of every combination that is not a point: where its list begins in `neighbours` ..."""
    count: Ints
    """... and how long it is."""
    neighbours: Ints

    @property
    def digits(self) -> int:
        return int(self.points.shape[1])

    def number(self, digits: Ints) -> Ints:
        """Digits [digits, n] -> combinations' numbers [n]."""
        number = np.zeros(digits.shape[1], np.int32)
        for digit in digits[::-1]:
            number = number * np.int32(self.base) + digit
        return number

    def snap(
        self, digits: Ints, x: Floats, w: Floats, scale: Floats, values: Floats
    ) -> tuple[Ints, npt.NDArray[np.bool_]]:
        """The points for rounded digits: (numbers [n], whether the digits were a point themselves [n]).

        digits, x, w: [digits, n]; scale: [n]; values: [base, n or 1], what a digit stands for. Where the digits are
        no point, the neighbour of least sum of w (scale * value - x)^2, the first of equals. Where no sum is finite
        (the reference gives up there) it is the first neighbour.
        """
        numbers = self.number(digits)
        found = self.index[numbers]
        on_grid = found >= 0
        off = np.nonzero(~on_grid)[0]
        if off.size:
            found = found.copy()
            found[off] = self._nearest(
                numbers[off],
                x[:, off],
                w[:, off],
                scale[off],
                values if values.shape[1] == 1 else values[:, off],
            )
        return found, on_grid

    def _nearest(self, numbers: Ints, x: Floats, w: Floats, scale: Floats, values: Floats) -> Ints:
        counts = self.count[numbers]
        order = np.argsort(-counts, kind="stable")
        counts, first, x, w = counts[order], self.first[numbers][order], x[:, order], w[:, order]
        # What each digit of each weight would cost: [digits, base, n].
        spread = values if values.shape[1] == 1 else values[:, order]
        difference = scale[order] * spread[None] - x[:, None]
        costs = w[:, None] * difference * difference
        best_cost = np.full(len(numbers), np.finfo(np.float32).max, np.float32)
        best = self.neighbours[first]
        for step in range(int(counts[0])):
            n = int(np.searchsorted(-counts, -step, side="left"))  # those with more than `step` neighbours
            point = self.neighbours[first[:n] + step]
            rows = np.arange(n)
            cost = np.zeros(n, np.float32)
            for i in range(self.digits):
                cost += costs[i, self.points[point, i], rows]
            better = cost < best_cost[:n]
            best[:n][better], best_cost[:n][better] = point[better], cost[better]
        result = np.empty_like(best)
        result[order] = best
        return result


@cache
def grid(name: str) -> Codebook:
    """The tables of "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", or "IQ1" (IQ1_S and IQ1_M)."""
    facts = GRIDS[name]
    points = np.array(facts.points(), np.int32)
    n = facts.base**facts.digits
    powers = facts.base ** np.arange(facts.digits)
    combinations = (np.arange(n)[:, None] // powers % facts.base).astype(np.int32)
    index = np.full(n, -1, np.int32)
    index[points @ powers] = np.arange(len(points))

    off = np.nonzero(index < 0)[0]
    a, b = combinations[off].astype(F), points.astype(F)
    distance = ((a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * (a @ b.T)).astype(np.int16)
    taken = np.zeros(distance.shape, bool)
    rest = distance.copy()
    for _ in range(DISTANCES[name]):
        nearest = rest == rest.min(axis=1, keepdims=True)
        taken |= nearest
        rest[nearest] = np.iinfo(np.int16).max
    rows, columns = np.nonzero(taken)
    order = np.lexsort((columns, distance[rows, columns], rows))
    count = np.zeros(n, np.int32)
    count[off] = taken.sum(axis=1)
    first = np.concatenate([[0], np.cumsum(count)[:-1]]).astype(np.int32)
    return Codebook(facts.base, points, index, first, count, columns[order].astype(np.int32))
