"""Products of the native engine against float64, for every weight type, batch size and instruction set."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from loragraft import _native
from loragraft.arrays import Floats
from loragraft.quants import reference
from loragraft.quants.types import BY_NAME, QuantType
from products import TYPES, Product, random_weight

engine = _native.engine

INVARIANCE = str(Path(__file__).with_name("test_invariance.py"))
ROWS = 53  # no multiple of any tile
LIMIT = 2e-6
"""Largest error of a product relative to the norms of its factors; float32 sums of a few hundred terms."""
INTEGER = {"Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"} | {
    "IQ4_NL",
    "IQ4_XS",
    "MXFP4",
    "NVFP4",
    "TQ2_0",
}
"""Types with an integer product."""


def rounded_to_8_bits(x: Floats) -> npt.NDArray[np.float64]:
    """What an integer product sees: per 32, codes -127 to 127 of the largest magnitude."""
    groups = x.reshape(len(x), -1, 32)
    d = np.abs(groups).max(axis=-1, keepdims=True) / np.float32(127)
    inverse = np.divide(np.float32(1), d, out=np.zeros_like(d), where=d > 0)
    return (np.rint(groups * inverse).astype(np.float64) * d).reshape(x.shape)


def columns_of(kind: QuantType) -> int:
    """More than one panel deep, and not a multiple of it if the type allows."""
    return 512 if kind.block == 256 else 256 + 2 * max(kind.block, 32)


@pytest.mark.parametrize("q8", [False, True], ids=["float", "8-bit"])
@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_products_against_float64(kind: QuantType, q8: bool) -> None:
    rng = np.random.default_rng(kind.id)
    columns = columns_of(kind)
    data = random_weight(kind, rng, columns, ROWS)
    w = reference.dequantize(data, kind).astype(np.float64)
    product = Product(kind, data, columns, q8=q8)
    assert product.weight.has_q8 == (q8 and kind.name in INTEGER)
    for tokens in (1, 2, 3, 7, 9, 64):
        x = rng.standard_normal((tokens, columns), dtype=np.float32)
        x[:, 32:64] *= 1e-3
        x[0, 64:96] = 0
        seen = rounded_to_8_bits(x) if product.weight.has_q8 else x.astype(np.float64)
        size = np.linalg.norm(seen, axis=1)[:, None] * np.linalg.norm(w, axis=1)
        assert np.max(np.abs(product(x) - seen @ w.T) / size) < LIMIT, tokens


@pytest.mark.parametrize("isa", [isa for isa in _native.isas() if isa != _native.isa()])
def test_other_instruction_sets(isa: str) -> None:
    """The kernels of a process are chosen once, so each set needs its own."""
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-k",
            "against_float64 or any_",
            "-p",
            "no:cacheprovider",
            __file__,
            INVARIANCE,
        ],
        env=os.environ | {"LORAGRAFT_ISA": isa},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-2000:]


def test_the_epilogue_in_its_order() -> None:
    """scale, LoRA, DoRA scale, bias, architectural scale; for the experts that rows were routed to."""
    rng = np.random.default_rng(3)
    experts, rows, columns, rank, tokens, used = 3, 21, 64, 5, 11, 2
    w = rng.standard_normal((experts, rows, columns), dtype=np.float32)
    b = rng.standard_normal((rows, rank), dtype=np.float32)
    bias = rng.standard_normal(rows, dtype=np.float32)
    lengths = rng.uniform(0.5, 2, rows).astype(np.float32)
    xa = rng.standard_normal((tokens * used, rank), dtype=np.float32)
    x = rng.standard_normal((tokens, columns), dtype=np.float32)
    ids = rng.integers(0, experts, tokens * used).astype(np.int32)
    weight = engine.Weight(w.reshape(-1, columns).view(np.uint8), BY_NAME["F32"].id, columns, experts)
    y = np.empty((tokens * used, rows), np.float32)
    engine.multiply(engine.ThreadPool(2), weight, x, y, False, ids, 0.03, bias, 0.5, b, xa, lengths)
    for p, e in enumerate(ids):
        product = w[e].astype(np.float64) @ x[p // used]
        wanted = 0.5 * (lengths * (np.float32(0.03) * product + b.astype(np.float64) @ xa[p]) + bias)
        assert np.allclose(y[p], wanted, rtol=1e-5, atol=1e-5)


def test_bad_shapes_are_refused() -> None:
    pool = engine.ThreadPool(1)
    q8_0 = BY_NAME["Q8_0"].id
    weight = engine.Weight(np.zeros((4, 68), np.uint8), q8_0, 64)
    x = np.zeros((2, 64), np.float32)
    with pytest.raises(ValueError, match="row bytes do not fit the type"):
        engine.Weight(np.zeros((4, 67), np.uint8), q8_0, 64)
    with pytest.raises(ValueError, match="not a whole number of blocks"):
        engine.Weight(np.zeros((4, 68), np.uint8), q8_0, 63)
    with pytest.raises(ValueError, match="wrong shape of y"):
        engine.multiply(pool, weight, x, np.zeros((2, 5), np.float32), True)
    with pytest.raises(ValueError, match="x does not fit"):
        engine.multiply(pool, weight, x[:, :32].copy(), np.zeros((2, 4), np.float32), True)
    with pytest.raises(ValueError, match="no such expert"):
        engine.multiply(pool, weight, x, np.zeros((2, 4), np.float32), True, np.array([0, 1], np.int32))
    with pytest.raises(ValueError, match="row out of range"):
        weight.gather(np.array([4], np.int32), np.zeros((1, 64), np.float32))
