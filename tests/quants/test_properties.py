"""For every type: the native core equals the NumPy reference bit for bit, whatever the weights."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loragraft.quants import native, reference
from loragraft.quants.types import BY_NAME, Family

FAMILIES = (Family.IQ, Family.TERNARY, Family.FP4)
NATIVE = [
    name for name in reference.CODECS if BY_NAME[name].family in FAMILIES and native.supports(BY_NAME[name])
]
NEED_IMPORTANCE = ("IQ1_S", "IQ2_XXS", "IQ2_XS")


def special_rows(rng: np.random.Generator, columns: int, size: float) -> np.ndarray:
    """Rows that have upset quantizers: zeros, one weight, equal weights, ties, one sign, denormals, huge ones."""
    normal = rng.standard_normal(columns)
    rows = [
        np.zeros(columns),
        np.eye(1, columns, int(rng.integers(columns)))[0],
        np.full(columns, rng.choice([-1, 1])),
        np.round(normal),
        np.abs(normal),
        -np.abs(normal),
        rng.standard_cauchy(columns),
        np.where(rng.random(columns) < 0.9, 0, normal),
        normal * np.exp2(rng.integers(-30, 30, columns)),
        np.repeat(normal[: (columns + 15) // 16], 16)[:columns],
        rng.choice([-0.0, 0.0, 1.0], columns),
    ]
    with np.errstate(over="ignore"):
        return np.clip(np.array(rows) * size, -3e38, 3e38).astype(np.float32)


@pytest.mark.parametrize("name", NATIVE)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    blocks=st.integers(1, 5),
    exponent=st.floats(-30, 30) | st.just(-41.0),
    weights=st.sampled_from(["none", "spread", "holes", "equal"]),
)
def test_native_equals_reference(name: str, seed: int, blocks: int, exponent: float, weights: str) -> None:
    kind, rng = BY_NAME[name], np.random.default_rng(seed)
    columns = blocks * kind.block
    normal = (rng.standard_normal((3, columns)) * 10.0**exponent).astype(np.float32)
    x = np.concatenate([normal, special_rows(rng, columns, 10.0**exponent)])
    importance = {
        "none": None,
        "spread": rng.random(columns, dtype=np.float32) ** 6,
        "holes": (rng.random(columns) < 0.7).astype(np.float32),
        "equal": np.ones(columns, np.float32),
    }[weights]
    if importance is None and name in NEED_IMPORTANCE:
        return
    wanted = reference.quantize(x, kind, importance)
    back = reference.dequantize(wanted, kind).view(np.uint32)
    for isa in native.isas():
        got = native.quantize(x, kind, importance, isa=isa)
        assert np.array_equal(got, wanted), f"{isa}: rows {np.unique(np.nonzero(got != wanted)[0])}"
        assert np.array_equal(native.dequantize(wanted, kind, isa=isa).view(np.uint32), back), isa


@pytest.mark.parametrize("name", NATIVE)
def test_native_reads_every_byte_pattern_as_the_reference(name: str) -> None:
    kind = BY_NAME[name]
    data = np.random.default_rng(2).integers(0, 256, (16, 8 * kind.bytes), dtype=np.uint8)
    wanted = reference.dequantize(data, kind).view(np.uint32)
    for isa in native.isas():
        assert np.array_equal(native.dequantize(data, kind, isa=isa).view(np.uint32), wanted), isa
