"""RoPE facts of conversion."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from loragraft.archs.config import Config
from loragraft.archs.rope import llama3_freq_factors, rope_row_order


def test_factors_of_llama_3_2() -> None:
    """Against the reference converter's formula in torch's float32 (Llama 3.2 1B: heads of 64, factor 32)."""
    scaling = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    values = {"rope_scaling": {**scaling, "original_max_position_embeddings": 8192}, "rope_theta": 500000.0}
    factors = llama3_freq_factors(Config(Path("config.json"), {**values, "head_dim": 64}))
    expected = np.array([1.0] * 15 + [1.6513293, 3.2922628, 9.666731] + [32.0] * 14, np.float32)
    np.testing.assert_array_equal(factors, expected)


def test_none_without_scaling() -> None:
    assert llama3_freq_factors(Config(Path("config.json"), {"rope_theta": 1e4, "head_dim": 64})) is None


def test_row_order_is_the_permutation_of_the_reference() -> None:
    rows = np.arange(24)
    expected = rows.reshape(3, 2, 4).swapaxes(1, 2).reshape(24)
    np.testing.assert_array_equal(rope_row_order(24, 3), expected)
    assert list(rope_row_order(8, 1)) == [0, 4, 1, 5, 2, 6, 3, 7]
