"""Rounding with error feedback to the codebooks of IQ2 and IQ3."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

from loragraft.quants import lattices, native, rounding
from loragraft.quants.feedback import prepare, prepare_outputs
from loragraft.quants.iq_grids import grid
from loragraft.quants.lattices import LATTICES, rounded
from loragraft.quants.types import BY_NAME
from quants.test_feedback import cost, importance, inputs, matrix, moments_of

COLUMNS = 256
H = moments_of(inputs(COLUMNS))
NAMES = list(LATTICES)


def nearest(w: Any, name: str) -> tuple[Any, Any]:
    data = native.quantize(w, BY_NAME[name], importance(H))
    return data, native.dequantize(data, BY_NAME[name])


@pytest.mark.parametrize("name", NAMES)
def test_the_cost_is_what_is_said_and_far_below_nearest_rounding(name: str) -> None:
    w, moments = matrix(70, COLUMNS), prepare(H, 8)
    data, values = nearest(w, name)
    found, after, before = rounded(w, name, data, values, moments)
    for losses, q in ((before, values), (after, native.dequantize(found, BY_NAME[name]))):
        np.testing.assert_allclose(losses * moments.mean, cost(w, q, H), rtol=1e-3)
    assert after.sum() < 0.15 * before.sum()
    one_pass = rounded(w, name, data, values, moments, sweeps=0)[1].sum()
    assert after.sum() < 0.8 * one_pass  # sweeps help


@pytest.mark.parametrize("name", NAMES)
def test_weights_on_the_lattice_are_found_again(name: str) -> None:
    """And all that is found is put where the decoder looks for it."""
    data, values = nearest(matrix(20, COLUMNS), name)
    elsewhere = np.zeros_like(values)
    found, after, before = rounded(values, name, data, elsewhere, prepare(H, 8))
    np.testing.assert_allclose(native.dequantize(found, BY_NAME[name]), values, atol=1e-7)
    assert after.max() < 1e-6 * before.min()


@pytest.mark.parametrize("name", NAMES)
def test_a_group_goes_to_the_best_of_all_points(name: str) -> None:
    """Of one group, the others' columns being without weight: against a search of every point."""
    rng = np.random.default_rng(4)
    mixed = rng.standard_normal((8, 8))
    h = np.eye(COLUMNS) * 1e-6
    h[:8, :8] = mixed @ mixed.T
    moments = prepare(h, 8, 1e-9)
    w = matrix(12, COLUMNS)
    data, values = nearest(w, name)
    found = native.dequantize(rounded(w, name, data, values, moments, sweeps=0)[0], BY_NAME[name])
    lattice = LATTICES[name]
    scale = lattice.scales_of(data)[:, 0]
    magnitudes = lattice.values[grid(name).points]
    halves = 8 // magnitudes.shape[1]
    picked = magnitudes[:40] if halves == 2 else magnitudes  # of pairs, a part
    whole = np.array([np.concatenate(pair) for pair in product(picked, repeat=halves)])
    for row in range(len(w)):
        error = w[row, :8] - np.sign(found[row, :8]) * scale[row] * whole
        least = ((error @ h[:8, :8]) * error).sum(axis=1).min()
        own = w[row, :8] - found[row, :8]
        # Of two halves the first is chosen before the second.
        assert own @ h[:8, :8] @ own <= least * (1.5 if halves == 2 else 1) + 1e-9


@pytest.mark.parametrize("name", NAMES)
def test_signs_are_even_where_they_must_be(name: str) -> None:
    w = matrix(20, COLUMNS)
    data, values = nearest(w, name)
    found = native.dequantize(rounded(w, name, data, values, prepare(H, 8))[0], BY_NAME[name])
    minus = (np.signbit(found).reshape(-1, 8).sum(axis=1) % 2 == 1).mean()
    assert minus == 0 if LATTICES[name].even_signs else 0.3 < minus < 0.7


@pytest.mark.parametrize("name", NAMES)
def test_no_more_than_nearest_rounding_for_any_rows(name: str) -> None:
    w = matrix(12, COLUMNS)
    w[0] = 0
    w[1] *= 1e-30
    w[2, :128] = 0
    w[3] *= 1e4
    moments = prepare(H, 8)
    result = rounding.round_matrix(w, BY_NAME[name], moments, importance(H))
    assert result.cost <= result.nearest
    q, usual = (native.dequantize(d, BY_NAME[name]) for d in (result.data, nearest(w, name)[0]))
    assert (cost(w, q, H) <= cost(w, usual, H) * (1 + 1e-4)).all()


def test_threads_change_nothing_and_outputs_count() -> None:
    kind, w, moments = BY_NAME["IQ3_S"], matrix(150, COLUMNS), prepare(H, 8)
    one, three = (
        rounding.round_matrix(w, kind, moments, importance(H), threads=threads).data for threads in (1, 3)
    )
    assert np.array_equal(one, three)
    g = inputs(150, 300, seed=9)
    g = g.T @ g
    outputs = prepare_outputs(g)
    assert outputs is not None
    data = rounding.round_for_outputs(w, kind, moments, importance(H), outputs)

    def joint(rows: Any) -> float:
        error = w - native.dequantize(rows, kind)
        return float(np.vdot(g @ error, error @ H))

    assert joint(data) < 0.9 * joint(one)
    assert lattices.TILE == 64


@pytest.mark.parametrize("name", NAMES)
def test_sweeps_go_on_from_what_is_in_the_file(name: str) -> None:
    """Points and signs are read as they are; a sweep lowers the cost."""
    w, moments = matrix(20, COLUMNS), prepare(H, 8)
    data, values = nearest(w, name)
    first, after, _ = rounded(w, name, data, values, moments, sweeps=0)
    means = native.dequantize(first, BY_NAME[name])
    assert np.array_equal(lattices.swept(w, name, first, means, moments, sweeps=0), first)
    one = native.dequantize(lattices.swept(w, name, first, means, moments), BY_NAME[name])
    assert (cost(w, one, H) <= after * moments.mean * (1 + 1e-3)).all()
    assert cost(w, one, H).sum() < 0.9 * after.sum() * moments.mean
