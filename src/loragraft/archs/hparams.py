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


#: No size is larger: as in llama.cpp, they are 32-bit numbers there.
_MAX_COUNT = 2**31 - 1
#: Float32's largest.
_MAX_NUMBER = 3.4028234663852886e38
#: More elements of a head than any model rotates; the frequencies are computed before a weight tells the true number.
_MAX_ROTARY = 2**16
#: More experts than any model has; tables of names are made for as many.
_MAX_EXPERTS = 2**12


class MetadataKeys:
    """Typed reads of `<arch>.<key>`; FormatError for one that is missing, of another type or out of range."""

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

    def has(self, key: str) -> bool:
        return self.get(key) is not None

    def count(self, key: str, default: int | None = None, *, least: int = 1, most: int = _MAX_COUNT) -> int:
        """An integer in [least, most]; an array (per layer) is accepted where all its items agree."""
        data = self.get(key)
        if isinstance(data, np.ndarray) and len(data):
            if (data != data[0]).any():
                raise UnsupportedError(
                    f"{self.arch}.{key}",
                    "layers of different sizes",
                    found=sorted(set(data.tolist())),
                    expected="one value",
                )
            data = data[0].item()
        if data is None:
            data = default
        if data is None:
            raise FormatError(f"{self.arch}.{key}", "the metadata lacks this key", expected="an integer")
        if not isinstance(data, int) or isinstance(data, bool) or not least <= data <= most:
            raise FormatError(
                f"{self.arch}.{key}",
                "bad metadata value",
                found=repr(data),
                expected=f"an integer from {least} to {most}",
            )
        return data

    def number(self, key: str, default: float | None = None, *, least: float = -_MAX_NUMBER) -> float:
        """A finite number >= `least`."""
        data = self.get(key)
        if data is None:
            data = default
        if data is None:
            raise FormatError(f"{self.arch}.{key}", "the metadata lacks this key", expected="a number")
        if not isinstance(data, int | float) or isinstance(data, bool) or not least <= data <= _MAX_NUMBER:
            from_ = "" if least == -_MAX_NUMBER else f" >= {least:g}"
            raise FormatError(
                f"{self.arch}.{key}",
                "bad metadata value",
                found=repr(data),
                expected=f"a finite number{from_}",
            )
        return float(data)

    def text(self, key: str, default: str) -> str:
        data = self.get(key)
        if data is None:
            return default
        if not isinstance(data, str):
            raise FormatError(
                f"{self.arch}.{key}", "bad metadata value", found=repr(data), expected="a string"
            )
        return data

    def first_number(self, *keys: str) -> float:
        """The first of the keys that is there; not negative."""
        present = [key for key in keys if self.has(key)]
        return self.number((present or keys)[0], least=0.0)


def read_hparams(metadata: Mapping[str, Value]) -> Hparams:
    """The shape of the model described by GGUF metadata; raises FormatError naming the key that is missing or bad."""
    keys = MetadataKeys(metadata)
    layers = keys.count("block_count", most=MAX_LAYERS)
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
    experts = keys.count("expert_count", 0, least=0, most=_MAX_EXPERTS)
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


def _windows(keys: MetadataKeys, layers: int) -> tuple[int | None, ...]:
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


def _rope(keys: MetadataKeys, rotary: int, head_dim: int) -> Rope:
    most = min(head_dim, _MAX_ROTARY)
    if rotary % 2 or rotary > most:
        raise FormatError(
            f"{keys.arch}.rope.dimension_count",
            "bad metadata value",
            found=rotary,
            expected=f"an even number up to {most}",
        )
    base = keys.number("rope.freq_base", 10000.0, least=1.0)
    pairs = np.arange(0, rotary, 2, dtype=np.float64)
    plain = base ** (-pairs / rotary)
    kind = keys.text("rope.scaling.type", "linear")
    factor = keys.number("rope.scaling.factor", keys.number("rope.scale_linear", 1.0), least=0.0) or 1.0
    magnitude = keys.number("rope.scaling.attn_factor", 1.0)
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


def _yarn(keys: MetadataKeys, plain: np.ndarray, base: float, rotary: int, factor: float) -> np.ndarray:
    """Frequencies of YaRN (Peng et al. 2023, arXiv 2309.00071, section 3.2): slow pairs are interpolated, fast ones
    kept, with a linear ramp between the pairs that turn `beta_slow` and `beta_fast` times in the original context."""
    context = keys.count("rope.scaling.original_context_length", keys.count("context_length"))

    def pair_turning(times: float) -> float:
        return rotary * log(context / (times * 2 * pi)) / (2 * log(base))

    if base == 1.0:
        raise FormatError(f"{keys.arch}.rope.freq_base", "YaRN needs a base", found=base, expected="above 1")
    low = max(0, floor(pair_turning(keys.number("rope.scaling.yarn_beta_fast", 32.0, least=1e-3))))
    high = min(rotary - 1, ceil(pair_turning(keys.number("rope.scaling.yarn_beta_slow", 1.0, least=1e-3))))
    ramp = np.clip((np.arange(rotary // 2) - low) / max(high - low, 1e-3), 0.0, 1.0)
    return plain * ((1.0 - ramp) + ramp / factor)
