"""What a model's metadata says of its shape, typed and checked (keys: gguf's constants.Keys)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, floor, log, pi

import numpy as np

from loragraft.errors import FormatError, UnsupportedError
from loragraft.formats.gguf.values import Value

MAX_LAYERS = 512
"""As in llama.cpp; a file that says more is refused before anything is sized by it."""


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary embedding: pair i turns by position * frequencies[i]; cos and sin grow by `magnitude`."""

    rotary: int
    frequencies: tuple[float, ...]
    magnitude: float


@dataclass(frozen=True, slots=True)
class Hparams:
    """Sizes in elements, per layer where a layer has them."""

    arch: str
    layers: int
    context: int
    """The context length that the model was trained with, in tokens."""
    width: int
    ff: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    rope: Rope
    windows: tuple[int | None, ...]
    """By layer: sliding-window attention over this many positions, or None."""
    experts: int
    experts_used: int


class _Keys:
    """Typed reads of `<arch>.<key>`."""

    def __init__(self, metadata: Mapping[str, Value]) -> None:
        self._metadata = metadata
        arch = metadata.get("general.architecture")
        if arch is None or not isinstance(arch.data, str):
            raise FormatError("general.architecture", "the metadata does not name the model's architecture")
        self.arch = arch.data

    def get(self, key: str) -> object:
        """The value as it is, or None."""
        value = self._metadata.get(f"{self.arch}.{key}")
        return None if value is None else value.data

    def count(self, key: str, default: int | None = None, *, least: int = 1) -> int:
        """A positive integer; an array (per layer) is accepted where all its items agree."""
        data = self.get(key)
        if isinstance(data, list | np.ndarray):
            items = {int(item) for item in data}
            if len(items) != 1:
                raise UnsupportedError(
                    f"{self.arch}.{key}",
                    "layers of different sizes",
                    found=sorted(items),
                    expected="one value",
                )
            data = items.pop()
        if data is None:
            data = default
        if data is None:
            raise FormatError(f"{self.arch}.{key}", "the metadata lacks this key", expected="an integer")
        if not isinstance(data, int) or isinstance(data, bool) or data < least:
            raise FormatError(
                f"{self.arch}.{key}",
                "bad metadata value",
                found=repr(data),
                expected=f"an integer >= {least}",
            )
        return data

    def number(self, key: str, default: float | None = None) -> float:
        data = self.get(key)
        if data is None:
            data = default
        if data is None:
            raise FormatError(f"{self.arch}.{key}", "the metadata lacks this key", expected="a number")
        if not isinstance(data, int | float) or isinstance(data, bool) or not np.isfinite(data):
            raise FormatError(
                f"{self.arch}.{key}", "bad metadata value", found=repr(data), expected="a finite number"
            )
        return float(data)

    def positive(self, key: str, default: float) -> float:
        value = self.number(key, default)
        if value <= 0:
            raise FormatError(
                f"{self.arch}.{key}", "bad metadata value", found=value, expected="a number > 0"
            )
        return value

    def text(self, key: str, default: str) -> str:
        data = self.get(key)
        return data if isinstance(data, str) else default

    def first_number(self, *keys: str) -> float:
        """The first of the keys that is there."""
        for key in keys:
            if self.get(key) is not None:
                return self.number(key)
        return self.number(keys[0])


def read_hparams(metadata: Mapping[str, Value]) -> Hparams:
    """The shape of the model described by GGUF metadata; raises FormatError naming the key that is missing or bad."""
    keys = _Keys(metadata)
    layers = keys.count("block_count")
    if layers > MAX_LAYERS:
        raise FormatError(
            f"{keys.arch}.block_count",
            "no model has so many layers",
            found=layers,
            expected=f"<= {MAX_LAYERS}",
        )
    width = keys.count("embedding_length")
    heads = keys.count("attention.head_count")
    kv_heads = keys.count("attention.head_count_kv", heads)
    head_dim = keys.count("attention.key_length", width // heads)
    value_dim = keys.count("attention.value_length", head_dim)
    if value_dim != head_dim:
        raise UnsupportedError(
            f"{keys.arch}.attention.value_length",
            "heads of values unlike heads of keys",
            found=value_dim,
            expected=head_dim,
        )
    if heads % kv_heads:
        raise FormatError(
            f"{keys.arch}.attention.head_count_kv",
            "query heads must be a multiple of key-value heads",
            found=f"{heads} and {kv_heads}",
        )
    experts = keys.count("expert_count", 0, least=0)
    return Hparams(
        arch=keys.arch,
        layers=layers,
        context=keys.count("context_length"),
        width=width,
        ff=keys.count("feed_forward_length", keys.count("expert_feed_forward_length", 0, least=0), least=0),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        norm_eps=keys.first_number("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"),
        rope=_rope(keys, keys.count("rope.dimension_count", head_dim), head_dim),
        windows=_windows(keys, layers),
        experts=experts,
        experts_used=keys.count("expert_used_count", None if experts else 0, least=0),
    )


def _windows(keys: _Keys, layers: int) -> tuple[int | None, ...]:
    window = keys.count("attention.sliding_window", 0, least=0) or None
    pattern = keys.get("attention.sliding_window_pattern")
    if window is None or pattern is None:
        return (window,) * layers
    if not isinstance(pattern, np.ndarray) or len(pattern) != layers or not {*pattern.tolist()} <= {0, 1}:
        raise UnsupportedError(
            f"{keys.arch}.attention.sliding_window_pattern",
            "a pattern of this kind",
            found=repr(pattern)[:80],
            expected=f"{layers} booleans",
        )
    return tuple(window if slides else None for slides in pattern)


def _rope(keys: _Keys, rotary: int, head_dim: int) -> Rope:
    if rotary % 2 or rotary > head_dim:
        raise FormatError(
            f"{keys.arch}.rope.dimension_count",
            "bad metadata value",
            found=rotary,
            expected=f"an even number up to {head_dim}",
        )
    base = keys.positive("rope.freq_base", 10000.0)
    pairs = np.arange(0, rotary, 2, dtype=np.float64)
    plain = base ** (-pairs / rotary)
    kind = keys.text("rope.scaling.type", "linear")
    factor = keys.number("rope.scaling.factor", keys.number("rope.scale_linear", 1.0)) or 1.0
    magnitude = keys.number("rope.scaling.attn_factor", 1.0)
    if factor < 0:
        raise FormatError(
            f"{keys.arch}.rope.scaling.factor", "bad metadata value", found=factor, expected="a number > 0"
        )
    if kind == "none" or (kind in ("linear", "yarn") and factor == 1.0):
        frequencies = plain
    elif kind == "linear":
        frequencies = plain / factor
    elif kind == "yarn":
        frequencies = _yarn(keys, plain, base, rotary, factor)
        magnitude *= standard_magnitude(factor)
    else:
        raise UnsupportedError(
            f"{keys.arch}.rope.scaling.type",
            "context extension of this kind",
            found=kind,
            expected="none, linear or yarn",
        )
    return Rope(rotary, tuple(frequencies.tolist()), magnitude)


def standard_magnitude(factor: float) -> float:
    """By which YaRN scales cos and sin: its square is the attention's temperature (arXiv 2309.00071, section 3.4)."""
    return 1.0 + 0.1 * log(max(factor, 1.0))


def _yarn(keys: _Keys, plain: np.ndarray, base: float, rotary: int, factor: float) -> np.ndarray:
    """Frequencies of YaRN (Peng et al. 2023, arXiv 2309.00071, section 3.2): slow pairs are interpolated, fast ones
    kept, with a linear ramp between the pairs that turn `beta_slow` and `beta_fast` times in the original context."""
    context = keys.count("rope.scaling.original_context_length", keys.count("context_length"))

    def pair_turning(times: float) -> float:
        return rotary * log(context / (times * 2 * pi)) / (2 * log(base))

    if base == 1.0:
        raise FormatError(f"{keys.arch}.rope.freq_base", "YaRN needs a base", found=base, expected="above 1")
    low = max(0, floor(pair_turning(keys.positive("rope.scaling.yarn_beta_fast", 32.0))))
    high = min(rotary - 1, ceil(pair_turning(keys.positive("rope.scaling.yarn_beta_slow", 1.0))))
    ramp = np.clip((np.arange(rotary // 2) - low) / max(high - low, 1e-3), 0.0, 1.0)
    return plain * ((1.0 - ramp) + ramp / factor)
