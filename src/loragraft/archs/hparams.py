"""What a model's metadata says of its shape, layer by layer (keys: gguf's constants.Keys)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from loragraft.archs.metadata import MAX_LAYERS, MetadataKeys
from loragraft.archs.rope import Rope, read_rope
from loragraft.errors import FormatError

#: More experts than any model has; tables of names are made for as many.
_MAX_EXPERTS = 2**12


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer. Sizes in elements."""

    heads: int
    """0, like `kv_heads`, in a layer without attention."""
    kv_heads: int
    key_dim: int
    """Of each head of q and k."""
    value_dim: int
    """Of each head of v."""
    rope: Rope | None
    """None: no position embedding."""
    window: int | None
    """Sliding-window attention over this many positions, the token's own included; None: over all."""
    ff: int
    mixer: str = "attention"
    """What mixes positions, by the name that `blocks.by_mixer` picks it under: attention, or a recurrence."""
    feed_forward: str = "dense"
    """The same of what follows, for `blocks.by_feed_forward`: dense or experts."""


@dataclass(frozen=True, slots=True)
class Hparams:
    """A model's sizes and constants. What `read_decoder` leaves at its default, a family reads that has it."""

    arch: str
    layers: tuple[Layer, ...]
    context: int
    """The context length that the model was trained with, in tokens."""
    width: int
    norm_eps: float
    experts: int
    experts_used: int
    attention_scale: float | None = None
    """Of q k; None: 1 / sqrt(key_dim)."""
    attention_softcap: float | None = None
    """Scores s become softcap * tanh(s / softcap)."""
    clamp_qkv: float | None = None
    """q, k and v stay within -clamp_qkv and clamp_qkv."""
    logit_softcap: float | None = None
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    """Of what a layer's parts add to the residual stream."""
    logit_scale: float = 1.0
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What one family alone has, by GGUF's key without the architecture's prefix."""

    def with_layers(self, change: Callable[[int, Layer], Layer]) -> Hparams:
        """Each layer as `change(index, layer)` has it."""
        return replace(self, layers=tuple(change(i, layer) for i, layer in enumerate(self.layers)))


def read_decoder(keys: MetadataKeys) -> Hparams:
    """The keys that all decoders share; raises FormatError naming the one that is missing or bad.

    Sizes of heads and feed-forward may differ between layers. All layers have the same rope; `attention.sliding_window`
    is that of every layer, or of those in `attention.sliding_window_pattern`.
    """
    n_layers = keys.count("block_count", most=MAX_LAYERS)
    width = keys.count("embedding_length")
    heads = keys.counts("attention.head_count", n_layers, least=0)
    kv_heads = _kv_heads(keys, heads)
    key_dim = keys.count("attention.key_length", width // (max(heads) or keys.count("attention.head_count")))
    value_dim = keys.count("attention.value_length", key_dim)
    experts = keys.count("expert_count", 0, least=0, most=_MAX_EXPERTS)
    experts_ff = keys.count("expert_feed_forward_length", 0, least=0)
    ff = keys.counts("feed_forward_length", n_layers, experts_ff, least=0)
    rope = read_rope(keys, keys.count("rope.dimension_count", key_dim), key_dim)
    windows = read_windows(keys, n_layers)
    kind = "experts" if experts else "dense"
    return Hparams(
        arch=keys.arch,
        layers=tuple(
            Layer(heads[i], kv_heads[i], key_dim, value_dim, rope, windows[i], ff[i], feed_forward=kind)
            for i in range(n_layers)
        ),
        context=keys.count("context_length"),
        width=width,
        norm_eps=keys.first_number("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"),
        experts=experts,
        experts_used=keys.count("expert_used_count", None if experts else 0, least=0),
    )


def _kv_heads(keys: MetadataKeys, heads: tuple[int, ...]) -> tuple[int, ...]:
    key = "attention.head_count_kv"
    kv_heads = keys.counts(key, len(heads), least=0) if keys.has(key) else heads
    for own, shared in zip(heads, kv_heads, strict=True):
        if shared and own % shared:
            raise FormatError(
                f"{keys.arch}.{key}",
                "query heads must be a multiple of key-value heads",
                found=f"{own} and {shared}",
            )
    return kv_heads


def read_windows(
    keys: MetadataKeys, layers: int, usual: Callable[[int], bool] = lambda layer: True
) -> tuple[int | None, ...]:
    """By layer. Where the file has no pattern, `usual` says which layers have the window."""
    window = keys.count("attention.sliding_window", 0, least=0) or None
    pattern = "attention.sliding_window_pattern"
    keys.cover(pattern)
    if window is None or not keys.has(pattern):
        return tuple(window if usual(layer) else None for layer in range(layers))
    slides = keys.flags(pattern, layers) or ()
    return tuple(window if slide else None for slide in slides)
