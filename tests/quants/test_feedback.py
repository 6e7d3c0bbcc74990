"""Rounding with error feedback: the native core does what the NumPy reference defines, and it never costs more than
rounding to nearest."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from any_weights import ROWS, weights
from loragraft.arrays import Floats
from loragraft.errors import QuantizeError
from loragraft.quants import feedback as definition
from loragraft.quants import native, nvfp4, reference, rounding
from loragraft.quants.arranged import Schedule, schedule
from loragraft.quants.feedback import TILE, prepare, prepare_outputs, share_lost
from loragraft.quants.grids import GRIDS
from loragraft.quants.types import BY_NAME

COLUMNS = 512
NAMES = list(GRIDS)


def inputs(columns: int = COLUMNS, tokens: int = 300, seed: int = 0) -> Floats:
    """Inputs [tokens, columns] as layers have them: columns of different sizes that go together, a few large."""
    rng = np.random.default_rng(seed)
    size = np.exp(rng.standard_normal(columns))
    size[rng.integers(0, columns, 3)] *= 20
    mixed = rng.standard_normal((tokens, columns // 4)) @ rng.standard_normal((columns // 4, columns))
    return ((mixed + rng.standard_normal((tokens, columns))) * size).astype(np.float32)


def moments_of(x: Floats) -> Floats:
    return x.T @ x


def matrix(rows: int = 40, columns: int = COLUMNS, seed: int = 1) -> Floats:
    return (np.random.default_rng(seed).standard_t(5, (rows, columns)) * 0.02).astype(np.float32)


def cost(w: Floats, q: Floats, h: Floats) -> npt.NDArray[np.float64]:
    """(w - q) H (w - q)^T of every row, [rows]."""
    error = w.astype(np.float64) - q
    return np.asarray(((error @ h.astype(np.float64)) * error).sum(axis=1))


def importance(h: Floats) -> Floats:
    return np.ascontiguousarray(np.diagonal(h) / 300)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    kinds=st.lists(st.sampled_from(list(ROWS)), min_size=1, max_size=4),
    scale=st.sampled_from([1.0, 1e-42, 1e-8, 1e4]),
)
def test_blocks_go_apart_and_together_without_loss(
    name: str, seed: int, kinds: list[str], scale: float
) -> None:
    kind, grid = BY_NAME[name], GRIDS[name]
    data = native.quantize(weights(seed, kinds, scale, COLUMNS), kind, np.ones(COLUMNS, np.float32))
    parts = grid.split(data)
    joined = grid.join(parts)
    if kinds == ["normal"] and scale == 1.0:
        assert np.array_equal(joined, data)
    with np.errstate(all="ignore"):  # elsewhere a half float of minus zero may become zero
        values = reference.dequantize(data, kind)
        assert np.array_equal(reference.dequantize(joined, kind), values, equal_nan=True)
        assert np.array_equal(grid.values(parts), values, equal_nan=True)


def test_the_factor_multiplies_out_to_the_moments() -> None:
    h = moments_of(inputs())
    moments = prepare(h, 32, 0.05)
    ordered = h[np.ix_(moments.order, moments.order)].astype(np.float64) / moments.mean
    ordered += 0.05 * np.eye(COLUMNS)

    def whole(panels: Floats) -> npt.NDArray[np.float64]:
        return panels.transpose(1, 0, 2).reshape(COLUMNS, COLUMNS).astype(np.float64)

    upper = np.eye(COLUMNS)
    for b in range(COLUMNS // 32):
        upper[: (b + 1) * 32, b * 32 : (b + 1) * 32] += moments.panel(b)
    assert np.array_equal(upper, np.triu(upper))
    assert np.array_equal(np.diagonal(upper), np.ones(COLUMNS))
    assert np.allclose((upper * moments.pivots) @ upper.T, ordered, rtol=1e-4, atol=1e-5)
    assert np.allclose(whole(moments.h), ordered, rtol=1e-6)
    for b, inverse in enumerate(moments.block_inverse):
        at = slice(b * 32, (b + 1) * 32)
        assert np.allclose(inverse @ ordered[at, at], np.eye(32), atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("isa", native.isas())
def test_the_native_core_is_the_definition(name: str, isa: str) -> None:
    """37 rows: tiles of every instruction set, and one that is not full."""
    kind, grid = BY_NAME[name], GRIDS[name]
    w, h = matrix(37, 256), moments_of(inputs(256))
    parts = grid.split(native.quantize(w, kind, importance(h)))
    moments = prepare(h, grid.sub)
    plan = schedule(grid)
    plan = Schedule(plan.step, plan.sweeps[:2])
    expected, losses = definition.feedback(w, grid, parts, moments, plan)
    found, found_losses = rounding.feedback(w, grid, parts, moments, plan, isa=isa)
    assert np.array_equal(found.levels, expected.levels)
    assert np.array_equal(found.scales, expected.scales)
    if expected.offsets is not None:
        assert np.array_equal(found.offsets, expected.offsets)
    assert np.array_equal(found_losses, losses)
    assert not np.array_equal(expected.levels, parts.levels)


@pytest.mark.parametrize("name", ["Q4_K", "NVFP4"])
@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    kinds=st.lists(st.sampled_from(list(ROWS)), min_size=1, max_size=4),
    scale=st.sampled_from([1.0, 1e-42, 1e-20, 1e4]),
)
def test_the_native_core_is_the_definition_for_any_weights(
    name: str, seed: int, kinds: list[str], scale: float
) -> None:
    kind, grid = BY_NAME[name], GRIDS[name]
    w, h = weights(seed, kinds, scale, 256), moments_of(inputs(256, seed=seed))
    parts = grid.split(native.quantize(w, kind, importance(h)))
    moments = prepare(h, grid.sub)
    for plan in (Schedule(1, (1,)), Schedule(0, (1,), forward=False)):
        expected, losses = definition.feedback(w, grid, parts, moments, plan)
        found, found_losses = rounding.feedback(w, grid, parts, moments, plan)
        assert np.array_equal(found.levels, expected.levels)
        assert np.array_equal(found.scales, expected.scales)
        assert np.array_equal(found_losses, losses, equal_nan=True)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(3))
def test_feedback_costs_less_than_rounding_to_nearest(name: str, seed: int) -> None:
    """Of every row with the same scales, and with scales that may move."""
    kind, grid = BY_NAME[name], GRIDS[name]
    w, h = matrix(seed=seed), moments_of(inputs(seed=seed))
    moments = prepare(h, grid.sub)
    nearest = native.dequantize(native.quantize(w, kind, importance(h)), kind)
    before = cost(w, nearest, h)
    totals = [before.sum()]
    for plan in (Schedule(0, ()), Schedule(0, (0, 0)), None):
        rounded = rounding.round_matrix(w, kind, moments, importance(h), plan=plan)
        after = cost(w, native.dequantize(rounded.data, kind), h)
        assert np.all(after <= before * (1 + 1e-4))
        assert rounded.cost == pytest.approx(after.sum(), rel=1e-3)
        assert rounded.nearest == pytest.approx(before.sum(), rel=1e-3)
        totals.append(after.sum())
    assert totals == sorted(totals, reverse=True)
    assert totals[-1] < 0.7 * totals[0]


def test_scales_that_stay_are_those_of_the_importance_matrix() -> None:
    kind, grid = BY_NAME["Q4_K"], GRIDS["Q4_K"]
    w, h = matrix(), moments_of(inputs())
    before = grid.split(native.quantize(w, kind, importance(h)))
    rounded = rounding.round_matrix(w, kind, prepare(h, grid.sub), importance(h), plan=Schedule(0, (0,)))
    after = grid.split(rounded.data)
    for field in ("scales", "offsets", "units", "offset_units"):
        assert np.array_equal(getattr(before, field), getattr(after, field))


def test_a_per_tensor_scale_is_honoured() -> None:
    kind = BY_NAME["NVFP4"]
    w, h = matrix(), moments_of(inputs())
    scale = nvfp4.tensor_scale(float(np.abs(w).max()))
    before = cost(w, nvfp4.dequantize_nvfp4(native.quantize_nvfp4(w, scale, importance(h)), scale), h)
    rounded = rounding.round_matrix(w, kind, prepare(h, 16), importance(h), scale=scale)
    after = cost(w, nvfp4.dequantize_nvfp4(rounded.data, scale), h)
    assert rounded.nearest == pytest.approx(before.sum(), rel=1e-3)
    assert rounded.cost == pytest.approx(after.sum(), rel=1e-3)
    assert after.sum() < 0.6 * before.sum()


def test_independent_inputs_leave_nothing_to_make_up_for() -> None:
    """With a diagonal H rounding to nearest is best already, once the scales are given."""
    kind, grid = BY_NAME["Q4_0"], GRIDS["Q4_0"]
    w, h = matrix(), np.diag(np.linspace(1, 2, COLUMNS)).astype(np.float32)
    nearest = native.quantize(w, kind, importance(h))
    plan = Schedule(0, (0,))
    rounded = rounding.round_matrix(w, kind, prepare(h, 32, 0.0), importance(h), plan=plan)
    differ = grid.split(rounded.data).levels != grid.split(nearest).levels
    assert rounded.cost <= rounded.nearest
    # llama-quantize keeps the codes of its search, which belong to a scale before it became a half float.
    assert differ.mean() < 0.01


def test_threads_change_nothing() -> None:
    kind = BY_NAME["Q5_1"]
    w, h = matrix(100), moments_of(inputs())
    moments = prepare(h, 32)
    one, three = (rounding.round_matrix(w, kind, moments, importance(h), threads=n) for n in (1, 3))
    assert np.array_equal(one.data, three.data)


def test_columns_that_nothing_reached() -> None:
    """Their weights are rounded too: what was not seen may still come."""
    kind = BY_NAME["Q4_K"]
    x = inputs()
    x[:, ::3] = 0
    w, h = matrix(), moments_of(x)
    rounded = rounding.round_matrix(w, kind, prepare(h, 32), importance(h))
    back = native.dequantize(rounded.data, kind)
    assert rounded.cost < 0.7 * rounded.nearest
    assert np.abs(back - w)[:, ::3].max() < np.abs(w).max()


@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_moments_that_say_nothing_are_refused(bad: float) -> None:
    with pytest.raises(QuantizeError, match="second moments"):
        prepare(np.full((32, 32), bad, np.float32), 32)


def test_moments_of_another_layer_are_refused() -> None:
    moments = prepare(moments_of(inputs(256)), 32)
    with pytest.raises(QuantizeError, match="do not fit"):
        rounding.round_matrix(matrix(), BY_NAME["Q4_0"], moments, np.ones(COLUMNS, np.float32))


def gradients(rows: int = 70, tokens: int = 400, seed: int = 3) -> Floats:
    """Gradients [tokens, rows] that go together, neighbours most."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((tokens, 8)) @ rng.standard_normal((8, rows))
    return (mixed + rng.standard_normal((tokens, rows))).astype(np.float32)


def test_the_output_factor_multiplies_out_to_the_moments() -> None:
    """V P V^T = G with P what is left on the diagonal blocks, and every row once."""
    g = moments_of(gradients())
    outputs = prepare_outputs(g, 0.3)
    assert outputs is not None
    assert sorted(outputs.order.tolist()) == list(range(70))
    assert max(np.diff(outputs.starts)) <= TILE
    damped = g.astype(np.float64) / np.diagonal(g).mean() + 0.3 * np.eye(70)
    assert np.allclose(outputs.g, damped, rtol=1e-6)
    unit = np.eye(70) + outputs.factor
    assert np.array_equal(unit, np.triu(unit))
    inverse = np.linalg.inv(unit)
    left = inverse @ damped[np.ix_(outputs.order, outputs.order)] @ inverse.T
    for first, stop in pairwise(outputs.starts):
        left[first:stop, first:stop] = 0
    assert np.abs(left).max() < 1e-5
    assert prepare_outputs(np.zeros((70, 70), np.float32)) is None


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(2))
def test_rows_that_make_up_for_others_cost_less(name: str, seed: int) -> None:
    """tr(G E H E^T) is below what rounding to nearest costs, and below what the same rows cost one by one."""
    kind, grid = BY_NAME[name], GRIDS[name]
    w, h, g = matrix(70, seed=seed), moments_of(inputs(seed=seed)), moments_of(gradients(seed=seed))
    moments, outputs = prepare(h, grid.sub), prepare_outputs(g)
    assert outputs is not None
    nearest = native.dequantize(native.quantize(w, kind, importance(h)), kind)
    alone = rounding.round_matrix(w, kind, moments, importance(h))
    found = rounding.round_matrix(w, kind, moments, importance(h), outputs=outputs)

    def joint(q: Floats) -> float:
        error = w.astype(np.float64) - q
        damped_h = h / moments.mean + moments.damping * np.eye(len(h))
        return float(np.trace(outputs.g @ error @ damped_h @ error.T)) * moments.mean

    values = native.dequantize(found.data, kind)
    assert found.cost == pytest.approx(joint(values), rel=1e-3)
    assert found.nearest == pytest.approx(joint(nearest), rel=1e-3)
    assert found.cost < found.nearest
    assert found.cost < 0.95 * joint(native.dequantize(alone.data, kind))


@pytest.mark.parametrize("name", ["Q4_K", "IQ4_NL"])
def test_making_up_for_rows_is_what_the_definition_says(name: str) -> None:
    """The same bytes as when NumPy's loops round each block of rows; visiting them again makes up for more."""
    kind, grid = BY_NAME[name], GRIDS[name]
    w, h, g = matrix(70, 256), moments_of(inputs(256)), moments_of(gradients(70))
    moments, outputs = prepare(h, grid.sub), prepare_outputs(g)
    assert outputs is not None
    data = np.empty((70, kind.row_bytes(256)), np.uint8)
    plan = schedule(grid)

    def round_rows(target: Floats, rows: npt.NDArray[np.int64]) -> Floats:
        parts = grid.split(reference.quantize(target, kind, importance(h)))
        data[rows] = grid.join(definition.feedback(target, grid, parts, moments)[0])
        return reference.dequantize(data[rows], kind)

    def once_more(target: Floats, rows: npt.NDArray[np.int64]) -> Floats:
        again = Schedule(plan.step, plan.sweeps[1:], forward=False)
        data[rows] = grid.join(definition.feedback(target, grid, grid.split(data[rows]), moments, again)[0])
        return reference.dequantize(data[rows], kind)

    first = definition.round_in_turn(w, outputs, round_rows)
    second = definition.round_again(w, first, outputs, once_more)
    costs = [definition.joint_cost(w - q, moments, outputs) for q in (first, second)]
    assert costs[1] < 0.98 * costs[0]
    found = rounding.round_matrix(w, kind, moments, importance(h), outputs=outputs)
    assert np.array_equal(found.data, data)


def test_gradients_that_mislead_do_not_make_it_worse_than_nearest() -> None:
    """Moments without damping whose rows are nearly copies of one another: what is made up for grows without bound, and
    the matrix is rounded row by row instead."""
    kind, grid = BY_NAME["Q4_0"], GRIDS["Q4_0"]
    w, h = matrix(70), moments_of(inputs())
    column = np.exp(4 * np.random.default_rng(0).standard_normal((1, 70)))
    outputs = prepare_outputs((column.T @ column).astype(np.float32), 1e-4)
    assert outputs is not None
    moments = prepare(h, grid.sub)
    found = rounding.round_matrix(w, kind, moments, importance(h), outputs=outputs)
    assert found.cost <= found.nearest


@pytest.mark.parametrize(("base", "name"), [("Q4_0", "Q4_0"), ("Q4_K", "Q5_K")])
def test_less_of_a_change_is_lost_that_is_known(base: str, name: str) -> None:
    """A base on a grid, and a change of a small part of its step: rounding takes some of it back. What the joint cost
    may grow by is little."""
    kind, grid = BY_NAME[name], GRIDS[name]
    h, g = moments_of(inputs(256)), moments_of(gradients(70))
    moments, outputs = prepare(h, grid.sub), prepare_outputs(g)
    assert outputs is not None
    before = native.dequantize(native.quantize(matrix(70, 256), BY_NAME[base]), BY_NAME[base])
    rng = np.random.default_rng(5)
    change = rng.standard_normal((70, 4)) @ rng.standard_normal((4, 256))
    change = np.asarray(change * (0.015 * before.std() / change.std()), np.float32)
    w = before + change
    found = [
        rounding.round_matrix(w, kind, moments, importance(h), outputs=outputs, change=known)
        for known in (None, change)
    ]
    lost = [share_lost(w - native.dequantize(one.data, kind), change, moments, outputs) for one in found]
    assert abs(lost[1]) < 0.6 * lost[0]
    assert found[1].cost < 1.2 * found[0].cost
