"""Products of float matrices by the native core: what float64 says, in any layout, in one order of summing."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from loragraft.arrays import Floats
from loragraft.quants import native

#: rows, columns, depth: less than a tile, more than a panel each way, and no terms at all.
SHAPES = [
    (1, 1, 1),
    (5, 3, 2),
    (12, 32, 16),
    (13, 33, 17),
    (200, 70, 300),
    (197, 131, 600),
    (40, 3100, 9),
    (7, 9, 0),
]


def matrices(rows: int, columns: int, depth: int) -> tuple[Floats, Floats]:
    rng = np.random.default_rng(rows + columns + depth)
    return rng.standard_normal((rows, depth), np.float32), rng.standard_normal((depth, columns), np.float32)


def exact(a: Floats, b: Floats) -> npt.NDArray[np.float64]:
    return np.asarray(a.astype(np.float64) @ b)


def assert_near(found: Floats, a: Floats, b: Floats, before: float = 0.0) -> None:
    size = np.abs(a).astype(np.float64) @ np.abs(b) + abs(before)
    assert (np.abs(found - exact(a, b) - before) <= 1e-6 * size).all()


@pytest.mark.parametrize("isa", native.isas())
@pytest.mark.parametrize("shape", SHAPES)
def test_products_are_those_of_float64(shape: tuple[int, int, int], isa: str) -> None:
    a, b = matrices(*shape)
    found = native.product(a, b, isa=isa)
    assert found.shape == shape[:2]
    assert_near(found, a, b)
    assert_near(native.product(a, b, np.full(shape[:2], 3, np.float32), add=True, isa=isa), a, b, 3)


@pytest.mark.parametrize("isa", native.isas())
def test_any_layout_gives_the_same_bits(isa: str) -> None:
    a, b = matrices(50, 45, 33)
    expected = native.product(a, b, isa=isa)
    columns_first = [np.asfortranarray(x) for x in (a, b)]
    within = [np.pad(x, 3)[3:-3, 3:-3] for x in (a, b)]
    every_other = [np.repeat(np.repeat(x, 2, 0), 2, 1)[::2, ::2] for x in (a, b)]
    for one in (a, columns_first[0], within[0], every_other[0]):
        for other in (b, columns_first[1], within[1], every_other[1]):
            assert np.array_equal(native.product(one, other, isa=isa), expected)
    out = np.zeros((60, 60), np.float32)
    native.product(a, b, out[5:55, 7:52], isa=isa)
    assert np.array_equal(out[5:55, 7:52], expected)
    out[5:55, 7:52] = 0
    assert not out.any()


@pytest.mark.parametrize("isa", native.isas())
def test_a_part_of_a_product_has_the_bits_of_the_whole(isa: str) -> None:
    a, b = matrices(230, 90, 520)
    whole = native.product(a, b, isa=isa)
    for rows, columns in ((slice(3, 20), slice(11, 60)), (slice(200, 230), slice(0, 1))):
        assert np.array_equal(native.product(a[rows], b[:, columns], isa=isa), whole[rows, columns])


@pytest.mark.parametrize("isa", native.isas())
@pytest.mark.parametrize("size", [1, 31, 250])
def test_the_upper_half_is_that_of_the_whole(size: int, isa: str) -> None:
    x = np.random.default_rng(size).standard_normal((40, size), np.float32)
    half = native.product(x.T, x, np.zeros((size, size), np.float32), upper=True, isa=isa)
    assert np.array_equal(np.triu(half), np.triu(native.product(x.T, x, isa=isa)))
    if size == 250:
        assert not half[-1, 0]  # which is what is saved


@pytest.mark.parametrize(
    ("a", "b", "out"), [((2, 3), (4, 5), (2, 5)), ((2, 3), (3, 5), (2, 4)), ((2, 3), (3, 5), (3, 5))]
)
def test_arrays_that_do_not_fit_are_refused(
    a: tuple[int, int], b: tuple[int, int], out: tuple[int, int]
) -> None:
    arrays = [np.ones(shape, np.float32) for shape in (a, b, out)]
    with pytest.raises(ValueError, match="do not fit"):
        native.product(*arrays)
    with pytest.raises(ValueError, match="do not fit"):
        native.product(arrays[0], arrays[0].T, np.ones((2, 4), np.float32)[:, ::2])
