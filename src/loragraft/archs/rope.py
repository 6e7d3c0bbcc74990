"""RoPE facts that conversion needs (Su et al. 2021, arXiv 2104.09864)."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from loragraft.archs.config import Config


def llama3_freq_factors(config: Config) -> npt.NDArray[np.float32] | None:
    """float32 [head_dim/2]: what each frequency is divided by under Llama 3.1's scaling; None without it.

    Frequencies whose wavelength is short against the original context keep their value, long ones are divided by
    `factor`, those between are interpolated. Arithmetic in float32 per frequency, as conversion/llama.py's
    `generate_extra_tensors` does it, so that the file agrees in every bit.
    """
    rope = config.rope
    if str(rope["rope_type"]).lower() != "llama3":
        return None
    dim = np.float32(config.head_dim)
    base = float(rope.get("rope_theta") or 10000.0)
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / dim
    freqs = np.float32(1.0) / np.power(np.float32(base), exponents, dtype=np.float32)

    factor = float(rope.get("factor") or 8.0)
    low = float(rope.get("low_freq_factor") or 1.0)
    high = float(rope.get("high_freq_factor") or 4.0)
    context = float(rope.get("original_max_position_embeddings") or 8192)
    wavelengths = np.float32(2 * math.pi) / freqs
    with np.errstate(divide="ignore", invalid="ignore"):
        smooth = (np.float32(context) / wavelengths - np.float32(low)) / np.float32(high - low)
        between = np.float32(1) / ((np.float32(1) - smooth) / np.float32(factor) + smooth)
    return np.where(
        wavelengths < context / high,
        np.float32(1),
        np.where(wavelengths > context / low, np.float32(factor), between),
    ).astype(np.float32)


def rope_row_order(rows: int, heads: int) -> npt.NDArray[np.intp]:
    """intp [rows]: row i of the GGUF weight is row order[i] of the transformers weight.

    transformers rotates element j of a head with element j + d/2, GGUF's Llama rotates neighbours; the rows of q and k
    are reordered so that both compute the same (conversion/llama.py, `permute`).
    """
    return np.arange(rows).reshape(heads, 2, rows // heads // 2).swapaxes(1, 2).reshape(rows)
