"""Rows of weights of every kind that a quantizer may meet, and importance for their columns."""

from __future__ import annotations

import numpy as np

#: Types that ggml quantizes only with importance.
NEEDS_IMPORTANCE = {"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS"}

Rng = np.random.Generator


def normal(rng: Rng, n: int) -> np.ndarray:
    return rng.standard_normal(n)


def outlier(rng: Rng, n: int) -> np.ndarray:
    x = rng.standard_normal(n) * 1e-3
    x[rng.integers(n)] = rng.choice([-1e3, 1e3])
    return x


def signed_zeros(rng: Rng, n: int) -> np.ndarray:
    return np.where(rng.random(n) < 0.5, 0.0, -0.0)


def mostly_zero(rng: Rng, n: int) -> np.ndarray:
    return np.where(rng.random(n) < 0.95, 0.0, rng.standard_normal(n))


#: Rows of `n` weights; each is multiplied by the example's scale.
ROWS = {
    "normal": normal,
    "zeros": lambda rng, n: np.zeros(n),
    "signed zeros": signed_zeros,
    "mostly zero": mostly_zero,
    "constant": lambda rng, n: np.full(n, rng.standard_normal()),
    "negative": lambda rng, n: -np.abs(rng.standard_normal(n)),
    "positive": lambda rng, n: np.abs(rng.standard_normal(n)),
    "narrow, far from zero": lambda rng, n: -1000 + 1e-4 * rng.standard_normal(n),
    "single outlier": outlier,
    "many magnitudes": lambda rng, n: rng.standard_normal(n) * 10.0 ** rng.integers(-9, 9, n),
    "few values": lambda rng, n: rng.integers(-3, 4, n) / 4,
    "blocks of sixteen alike": lambda rng, n: np.resize(np.repeat(rng.standard_normal(n // 16 + 1), 16), n),
}
SPECIAL_SCALES = [1.0, 1e-42, 1e-38, 1e-8, 1e4, 1e17, 1e30]  # denormal; squares that vanish or overflow; huge
IMPORTANCE = {
    "even": lambda rng, n: np.ones(n),
    "squares": lambda rng, n: rng.standard_normal(n) ** 2,
    "uneven": lambda rng, n: np.exp(6 * rng.standard_normal(n)),
    "half zero": lambda rng, n: np.where(rng.random(n) < 0.5, 0, rng.standard_normal(n) ** 2),
    "tiny": lambda rng, n: 1e-20 * rng.standard_normal(n) ** 2,
}


def weights(seed: int, kinds: list[str], scale: float, columns: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = np.stack([ROWS[kind](rng, columns) for kind in kinds])
    limit = float(np.finfo(np.float32).max)
    return np.clip(rows * scale, -limit, limit).astype(np.float32)
