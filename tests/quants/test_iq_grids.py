"""The IQ grids: the points are the gguf package's, and the neighbours those of a plain sort."""

from __future__ import annotations

import gguf.quants
import numpy as np
import pytest

from loragraft.quants.iq_grids import DISTANCES, grid

GGUF = {
    "IQ2_XXS": gguf.quants.IQ2_XXS,
    "IQ2_XS": gguf.quants.IQ2_XS,
    "IQ2_S": gguf.quants.IQ2_S,
    "IQ1": gguf.quants.IQ1_S,
    "IQ3_XXS": gguf.quants.IQ3_XXS,
    "IQ3_S": gguf.quants.IQ3_S,
}


@pytest.mark.parametrize("name", GGUF)
def test_points_are_gguf_s(name: str) -> None:
    GGUF[name].init_grid()
    values = np.asarray(GGUF[name].grid).reshape(GGUF[name].grid_shape)
    ascending = np.unique(values)
    assert len(ascending) == grid(name).base
    assert np.array_equal(ascending[grid(name).points], values)


@pytest.mark.parametrize("name", GGUF)
def test_neighbours_are_those_of_the_nearest_distances_in_order(name: str) -> None:
    g = grid(name)
    off = np.nonzero(g.index < 0)[0]
    assert len(off) + len(g.points) == g.base**g.digits
    for number in np.random.default_rng(0).choice(off, 40, replace=False).tolist():
        digits = [number // g.base**i % g.base for i in range(g.digits)]
        ranked = sorted(
            (sum((a - b) ** 2 for a, b in zip(digits, point, strict=True)), index)
            for index, point in enumerate(g.points.tolist())
        )
        nearest = sorted({distance for distance, _ in ranked})[: DISTANCES[name]]
        wanted = [index for distance, index in ranked if distance in nearest]
        assert g.neighbours[g.first[number] :][: g.count[number]].tolist() == wanted


def test_a_point_snaps_to_itself_and_others_to_their_nearest() -> None:
    g = grid("IQ3_S")
    values = np.arange(1, 17, 2, dtype=np.float32)[:, None]
    on, off = int(np.nonzero(g.index >= 0)[0][5]), int(np.nonzero(g.index < 0)[0][7])
    digits = np.array([[n // 8**i % 8 for n in (on, off)] for i in range(4)], np.int32)
    x = (2 * digits + 1).astype(np.float32)
    points, on_grid = g.snap(digits, x, np.ones_like(x), np.ones(2, np.float32), values)
    assert on_grid.tolist() == [True, False]
    assert points[0] == g.index[on]
    assert points[1] == g.neighbours[g.first[off]]
