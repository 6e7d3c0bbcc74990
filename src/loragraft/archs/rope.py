"""Rotary position embedding (Su et al. 2021, arXiv 2104.09864): frequencies from GGUF's keys, factors for its files."""

from __future__ import annotations

import math
from dataclasses import dataclass
from math import ceil, floor, log, pi

import numpy as np
import numpy.typing as npt

from loragraft.archs.config import Config
from loragraft.archs.metadata import MetadataKeys
from loragraft.errors import FormatError, UnsupportedError

#: More elements of a head than any model rotates; the frequencies are computed before a weight tells the true number.
_MAX_ROTARY = 2**16
#: Read where the scaling is YaRN's. `yarn_attn_factor` is not: see `keys.rope`.
_YARN_KEYS = tuple(
    f"rope.scaling.{name}"
    for name in ("original_context_length", "yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow")
)
#: The tensors of longrope: what frequencies are divided by in texts longer than the original context, and in others.
LONG_FACTORS = ("rope_factors_long.weight", "rope_factors_short.weight")


#: Our own key, the factor of a dynamic scaling: it sets in behind the model's context, and is not computed.
DYNAMIC = "rope.scaling.dynamic"


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary embedding: pair i turns by position * frequencies[i]; cos and sin grow by `magnitude`."""

    rotary: int
    """Elements of a head that turn, the first ones."""
    frequencies: tuple[float, ...]
    magnitude: float
    context: int = 0
    """Tokens that a model with long and short factors was trained for."""
    original: int = 0
    """Contexts of more tokens than that take the long factors."""
    factors: bool = True
    """Whether the file's `rope_freqs`, if it has any, are for it."""
    most: int | None = None
    """Positions that it is known for: behind them a dynamic scaling would set in."""


def read_rope(
    keys: MetadataKeys,
    rotary: int,
    head_dim: int,
    *,
    base_key: str = "rope.freq_base",
    base: float = 10000.0,
    scaled: bool = True,
    truncate: bool = True,
) -> Rope:
    """The rope of `rotary` elements of heads of `head_dim`.

    `base_key` names the base (some families have one for each kind of layer), `base` is what it is without the key;
    `scaled`: whether `rope.scaling.*` is for this rope; `truncate`: whether YaRN's ramp is cut to whole pairs. Raises
    FormatError, and UnsupportedError for a context extension that is not known.
    """
    most = min(head_dim, _MAX_ROTARY)
    if rotary % 2 or rotary > most:
        raise FormatError(
            f"{keys.arch}.rope.dimension_count",
            "bad metadata value",
            found=rotary,
            expected=f"an even number up to {most}",
        )
    base = keys.number(base_key, base, least=1.0)
    pairs = np.arange(0, rotary, 2, dtype=np.float64)
    plain = base ** (-pairs / rotary)
    if not scaled:
        return Rope(rotary, tuple(plain.tolist()), 1.0)
    kind = keys.text("rope.scaling.type", "linear")
    factor = keys.number("rope.scaling.factor", keys.number("rope.scale_linear", 1.0), least=0.0) or 1.0
    magnitude = keys.number("rope.scaling.attn_factor", 1.0)
    keys.cover(*_YARN_KEYS)
    known = keys.count("context_length") if keys.has(DYNAMIC) else None
    if kind == "none" or (kind in ("linear", "yarn") and factor == 1.0):
        frequencies = plain
    elif kind == "linear":
        frequencies = plain / factor
    elif kind == "yarn":
        frequencies = _yarn(keys, plain, base, rotary, factor, truncate)
        magnitude *= standard_magnitude(factor)
    else:
        raise UnsupportedError(
            f"{keys.arch}.rope.scaling.type",
            "this kind of context extension is not supported",
            found=kind,
            expected="none, linear or yarn",
        )
    return Rope(rotary, tuple(frequencies.tolist()), magnitude, most=known)


def standard_magnitude(factor: float, multiplier: float = 1.0) -> float:
    """By which YaRN scales cos and sin: its square is the attention's temperature (arXiv 2309.00071, section 3.4)."""
    return 1.0 + 0.1 * multiplier * log(max(factor, 1.0))


def _yarn(
    keys: MetadataKeys, plain: np.ndarray, base: float, rotary: int, factor: float, truncate: bool
) -> np.ndarray:
    """Frequencies of YaRN (Peng et al. 2023, arXiv 2309.00071, section 3.2): slow pairs are interpolated, fast ones
    kept, with a linear ramp between the pairs that turn `beta_slow` and `beta_fast` times in the original context."""
    context = keys.count("rope.scaling.original_context_length", keys.count("context_length"))

    def pair_turning(times: float) -> float:
        return rotary * log(context / (times * 2 * pi)) / (2 * log(base))

    if base == 1.0:
        raise FormatError(f"{keys.arch}.rope.freq_base", "YaRN needs a base", found=base, expected="above 1")
    low = pair_turning(keys.number("rope.scaling.yarn_beta_fast", 32.0, least=1e-3))
    high = pair_turning(keys.number("rope.scaling.yarn_beta_slow", 1.0, least=1e-3))
    if truncate:
        low, high = float(floor(low)), float(ceil(high))
    low, high = max(low, 0.0), min(high, rotary - 1.0)
    ramp: np.ndarray = np.clip((np.arange(rotary // 2) - low) / max(high - low, 1e-3), 0.0, 1.0)
    return plain * ((1.0 - ramp) + ramp / factor)


def llama3_freq_factors(config: Config) -> npt.NDArray[np.float32] | None:
    """float32 [rotary / 2]: what each frequency is divided by under Llama 3.1's scaling; None without it.

    Frequencies whose wavelength is short against the original context keep their value, long ones are divided by
    `factor`, those between are interpolated. Arithmetic in float32 per frequency, as conversion/llama.py's
    `generate_extra_tensors` does it, so that the file agrees in every bit.
    """
    rope = config.rope
    if str(rope["rope_type"]).lower() != "llama3":
        return None
    rotary = int(config.head_dim * float(rope.get("partial_rotary_factor") or 1.0))
    dim = np.float32(rotary)
    base = float(rope.get("rope_theta") or 10000.0)
    exponents = np.arange(0, rotary, 2, dtype=np.float32) / dim
    freqs = np.float32(1.0) / np.power(np.float32(base), exponents, dtype=np.float32)

    factor = float(rope.get("factor") or 8.0)
    low = float(rope.get("low_freq_factor") or 1.0)
    high = float(rope.get("high_freq_factor") or 4.0)
    context = float(rope.get("original_max_position_embeddings") or 8192)
    wavelengths = np.float32(2 * math.pi) / freqs
    with np.errstate(all="ignore"):  # both sides of each choice are computed
        smooth = (np.float32(context) / wavelengths - np.float32(low)) / np.float32(high - low)
        between = np.float32(1) / ((np.float32(1) - smooth) / np.float32(factor) + smooth)
    return np.where(
        wavelengths < context / high,
        np.float32(1),
        np.where(wavelengths > context / low, np.float32(factor), between),
    ).astype(np.float32)


def rope_row_order(rows: int, heads: int, rotary: int | None = None) -> npt.NDArray[np.intp]:
    """intp [rows]: row i of the GGUF weight is row order[i] of the transformers weight.

    transformers rotates element j of a head with element j + d/2, GGUF's Llama rotates neighbours; the rows of q and k
    are reordered so that both compute the same (conversion/llama.py, `permute`). `rotary`: how many of each head turn,
    from the first on; None: all.
    """
    own = np.arange(rows).reshape(heads, rows // heads)
    turned = own[:, :rotary]
    pairs = turned.reshape(heads, 2, turned.shape[1] // 2).swapaxes(1, 2).reshape(turned.shape)
    return np.concatenate([pairs, own[:, turned.shape[1] :]], axis=1).reshape(rows)
