"""Any weights at all: the native core returns the reference's bytes on every instruction set, and what was quantized
reads back within the type's bound."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from any_weights import IMPORTANCE, NEEDS_IMPORTANCE, ROWS, SPECIAL_SCALES, weights
from loragraft.quants import native, reference
from loragraft.quants.types import BY_NAME, QuantType

NAMES = list(reference.CODECS)
scales = st.one_of(st.sampled_from(SPECIAL_SCALES), st.floats(-30, 30).map(lambda e: 10.0**e))


#: type -> relative squared error on Gaussian weights, in units of 1e-6. What each type costs, to within 3 %.
NOISE = {
    "F32": 0.0,
    "F16": 0.0428,
    "BF16": 2.75,
    "Q1_0": 360_000.0,
    "Q2_0": 518_000.0,
    "Q4_0": 7_440.0,
    "Q4_1": 6_120.0,
    "Q5_0": 1_830.0,
    "Q5_1": 1_450.0,
    "Q8_0": 28.8,
    "Q2_K": 87_700.0,
    "Q3_K": 22_900.0,
    "Q4_K": 5_110.0,
    "Q5_K": 1_320.0,
    "Q6_K": 316.0,
    "IQ1_S": 237_000.0,
    "IQ1_M": 206_000.0,
    "IQ2_XXS": 119_000.0,
    "IQ2_XS": 90_600.0,
    "IQ2_S": 70_700.0,
    "IQ3_XXS": 45_600.0,
    "IQ3_S": 27_600.0,
    "IQ4_NL": 5_850.0,
    "IQ4_XS": 5_930.0,
    "TQ1_0": 654_000.0,
    "TQ2_0": 654_000.0,
    "MXFP4": 13_400.0,
    "NVFP4": 8_990.0,
}


@pytest.mark.parametrize("name", NAMES)
def test_what_a_type_costs_on_gaussian_weights(name: str) -> None:
    """Where a codebook's bound on single weights says little, this still tells a right decoder from a wrong one."""
    kind = BY_NAME[name]
    x = np.random.default_rng(0).standard_normal((64, 1024)).astype(np.float32)
    w = np.ones(1024, dtype=np.float32) if name in NEEDS_IMPORTANCE else None
    back = reference.dequantize(native.quantize(x, kind, w), kind)
    error = np.square(back.astype(np.float64) - x).sum() / np.square(x).sum()
    assert error == pytest.approx(NOISE[name] * 1e-6, rel=0.03)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=20, deadline=None, derandomize=True, database=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    kinds=st.lists(st.sampled_from(list(ROWS)), min_size=1, max_size=6),
    scale=scales,
    blocks=st.integers(1, 5),
    importance=st.one_of(st.none(), st.sampled_from(list(IMPORTANCE))),
)
def test_native_is_the_reference_bit_for_bit(
    name: str, seed: int, kinds: list[str], scale: float, blocks: int, importance: str | None
) -> None:
    kind = BY_NAME[name]
    if not native.supports(kind):
        pytest.skip("no native kernel")
    columns = blocks * kind.block if kind.block > 1 else 13 * blocks
    x = weights(seed, kinds, scale, columns)
    if importance is None and name in NEEDS_IMPORTANCE:
        importance = "even"
    w = None
    if importance is not None:
        w = IMPORTANCE[importance](np.random.default_rng(seed), columns).astype(np.float32)
    wanted = reference.quantize(x, kind, w)
    back = reference.dequantize(wanted, kind)
    for isa in native.isas():
        np.testing.assert_array_equal(native.quantize(x, kind, w, isa=isa), wanted, err_msg=isa)
        np.testing.assert_array_equal(native.dequantize(wanted, kind, isa=isa), back, err_msg=isa)


#: type -> (bound, why). |x - back| is at most bound * (largest magnitude of the block, or of the super-block), for
#: weights whose scales half precision holds.
BOUNDS: dict[str, tuple[float, str]] = {
    "F32": (0.0, "stored as they are"),
    "F16": (2.0**-11, "half of the last of 11 bits"),
    "BF16": (2.0**-8, "half of the last of 8 bits, of a value up to twice the power of two below it"),
    "Q1_0": (1.0, "the mean magnitude for every magnitude"),
    "Q2_0": (0.5 + 2.0**-10, "half a step of the largest magnitude; the scale's half precision"),
    "Q4_0": (1 / 8 + 2.0**-10, "a whole step where the opposite of the largest is clipped from 8 to 7"),
    "Q5_0": (1 / 16 + 2.0**-10, "as Q4_0, 16 to 15"),
    "Q8_0": (1 / 254 + 2.0**-11, "half a step of 1/127; the scale's half precision"),
    "Q4_1": (
        1 / 15 + 2.0**-9,
        "half a step of a range up to twice the magnitude; two half-precision numbers",
    ),
    "Q5_1": (1 / 31 + 2.0**-9, "as Q4_1"),
    "Q2_K": (
        2 / 3,
        "a step of a range up to twice the magnitude: half for rounding, half for the scales' 4 bits",
    ),
    "Q3_K": (
        3 / 8,
        "a step of 1/4 where the opposite of the largest is clipped; half a step for the fitted scale",
    ),
    "Q4_K": (
        2 / 15,
        "a step of a range up to twice the magnitude: half for rounding, half for the scales' 6 bits",
    ),
    "Q5_K": (2 / 31, "as Q4_K"),
    "Q6_K": (1 / 32, "a step where the opposite of the largest is clipped from 32 to 31"),
    "IQ4_NL": (26 / 127, "the widest gap between two of its values"),
    "IQ4_XS": (26 / 127, "as IQ4_NL"),
    "TQ1_0": (0.5 + 2.0**-10, "half a step of the largest magnitude; the scale's half precision"),
    "TQ2_0": (0.5 + 2.0**-10, "as TQ1_0"),
    "MXFP4": (2 / 8, "the largest, just below the next power of two, is clipped from 8 to 6"),
    "NVFP4": (17 / 96, "half the gap from 4 to 6, a scale off by 1/16"),
}
_CODEBOOK = "a codebook holds few patterns of signs and sizes; the search weighs a group's sum, not one weight's error"
BOUNDS |= dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS"), (2.0, _CODEBOOK))
BOUNDS["IQ3_S"] = (
    2.5,
    "after a sub-block of zeros the reference stores codes where others are read, of up to 1.5",
)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=20, deadline=None, derandomize=True, database=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    kinds=st.lists(st.sampled_from(list(ROWS)), min_size=1, max_size=4),
    exponent=st.floats(-1, 1),
)
def test_reads_back_within_the_bound(name: str, seed: int, kinds: list[str], exponent: float) -> None:
    kind = BY_NAME[name]
    n = max(kind.block, 32)
    x = weights(seed, kinds, 1.0, 2 * n)
    x = (x / np.maximum(np.abs(x).max(axis=1, keepdims=True), 1e-30) * 10.0**exponent).astype(np.float32)
    w = np.ones(2 * n, dtype=np.float32) if name in NEEDS_IMPORTANCE else None
    back = reference.dequantize(reference.quantize(x, kind, w), kind)
    assert error_in_blocks(x, back, kind) <= BOUNDS[name][0]


def error_in_blocks(x: np.ndarray, back: np.ndarray, kind: QuantType) -> float:
    """The largest error relative to the largest magnitude in its block; blocks too small for a half-precision scale,
    which read back as zero or coarsely, are left out."""
    n = max(kind.block, 1)
    error = np.abs(x.astype(np.float64) - back).reshape(-1, n).max(axis=1)
    size = np.abs(x).reshape(-1, n).max(axis=1).astype(np.float64)
    fits = size > 0.05
    assert (back.reshape(-1, n)[size == 0] == 0).all()
    return float((error[fits] / size[fits]).max(initial=0.0))
