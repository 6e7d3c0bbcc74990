"""A value that is not a number stays visible: what multiplies it gives no number, in its own row and no other."""

from __future__ import annotations

import numpy as np
import pytest

from loragraft.backends.activations import round_nvfp4, round_q8
from loragraft.quants.types import QuantType
from products import TYPES, Product, random_weight

SPECIAL = [np.nan, -np.nan, np.inf, -np.inf]


@pytest.mark.parametrize("q8", [False, True], ids=["float", "8-bit"])
@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_products(kind: QuantType, q8: bool) -> None:
    rng = np.random.default_rng(200 + kind.id)
    rows, columns = 21, 512
    data = random_weight(kind, rng, columns, rows)
    product = Product(kind, data, columns, q8=q8)
    for tokens in (1, 5, 40):
        x = rng.standard_normal((tokens, columns), dtype=np.float32)
        wanted = product(x)
        assert np.isfinite(wanted).all()
        for value in SPECIAL:
            bad = int(rng.integers(tokens))
            spoiled = x.copy()
            spoiled[bad, rng.integers(columns)] = value
            found = product(spoiled)
            assert not np.isfinite(found[bad]).any(), value
            if product.weight.has_q8:
                assert np.isnan(found[bad]).all(), value
            others = np.arange(tokens) != bad
            assert np.array_equal(found[others], wanted[others])


@pytest.mark.parametrize("value", SPECIAL)
def test_rounding_spoils_the_block(value: float) -> None:
    x = np.random.default_rng(0).standard_normal((2, 100), dtype=np.float32)
    x[0, 40] = value
    q8, nvfp4 = round_q8(x), round_nvfp4(x, np.full(1, 0.01, np.float32))
    assert np.array_equal(np.flatnonzero(np.isnan(q8[0])), np.arange(32, 64))
    assert np.array_equal(np.flatnonzero(np.isnan(nvfp4[0])), np.arange(32, 48))
    assert np.isfinite(q8[1]).all()
    assert np.isfinite(nvfp4[1]).all()


def test_the_smallest_values_count_as_zeros() -> None:
    """A scale below the normal numbers has no inverse."""
    x = np.full((1, 64), 1e-38, np.float32)
    x[0, 32:] = np.float32(2e-45)
    assert np.array_equal(round_q8(x), np.zeros_like(x))
    kind = next(kind for kind in TYPES if kind.name == "Q8_0")
    rng = np.random.default_rng(2)
    product = Product(kind, random_weight(kind, rng, 64, 16), 64, q8=True)
    assert np.array_equal(product(x), np.zeros((1, 16), np.float32))
