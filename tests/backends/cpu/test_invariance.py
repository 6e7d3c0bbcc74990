"""A row of a product has the same bits whatever is multiplied along with it, for every weight type and instruction set:
any number of columns, any order of them, any number of threads."""

from __future__ import annotations

import os

import numpy as np
import pytest

from loragraft.quants.types import QuantType
from products import TYPES, Product, random_weight

MANY = 512
DRAWS = 1 if "LORAGRAFT_ISA" in os.environ else 3  # other instruction sets are slow, and share what is drawn


def shape_of(kind: QuantType, rng: np.random.Generator) -> tuple[int, int]:
    """Rows and columns that no tile divides, where the type allows it."""
    rows = int(rng.integers(1, 90))
    if kind.block == 1:
        return rows, int(rng.integers(1, 600))
    return rows, max(kind.block, 32) * int(rng.integers(1, 3 if kind.block == 256 else 20))


@pytest.mark.parametrize("q8", [False, True], ids=["float", "8-bit"])
@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_any_number_of_columns(kind: QuantType, q8: bool) -> None:
    rng = np.random.default_rng(kind.id)
    for _ in range(DRAWS):
        rows, columns = shape_of(kind, rng)
        data = random_weight(kind, rng, columns, rows)
        product = Product(kind, data, columns, q8=q8 and columns % 32 == 0)
        x = rng.standard_normal((MANY, columns), dtype=np.float32)
        alone = np.concatenate([product(x[i : i + 1]) for i in range(64)])
        assert np.isfinite(alone).all()
        for count in [*range(1, 20), *rng.integers(20, 64, 4)]:
            start = int(rng.integers(0, 64 - count + 1))
            together = product(x[start : start + count])
            assert np.array_equal(together, alone[start : start + count]), (rows, columns, count)
        assert np.array_equal(product(x)[:64], alone), (rows, columns)


@pytest.mark.parametrize("q8", [False, True], ids=["float", "8-bit"])
@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_any_order_and_any_threads(kind: QuantType, q8: bool) -> None:
    """Columns read any row of x and write any row of y: tokens of one expert."""
    rng = np.random.default_rng(100 + kind.id)
    experts, rows, columns, tokens, used = 3, 70, 512, 40, 2
    data = random_weight(kind, rng, columns, experts * rows)
    x = rng.standard_normal((tokens, columns), dtype=np.float32)
    ids = rng.choice(experts, tokens * used, p=[0.05, 0.15, 0.8]).astype(np.int32)
    found = [
        Product(kind, data, columns, q8=q8, threads=threads, experts=experts).routed(x, ids)
        for threads in (1, 2, 3)
    ]
    for expert in range(experts):
        own = Product(kind, data[expert * rows :][:rows], columns, q8=q8)
        for p in np.flatnonzero(ids == expert):
            wanted = own(x[p // used : p // used + 1])[0]
            for y in found:
                assert np.array_equal(y[p], wanted), p
