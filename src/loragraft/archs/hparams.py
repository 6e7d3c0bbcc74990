"""What a model's metadata says of its shape, layer by layer (keys: gguf's constants.Keys)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from loragraft.archs.metadata import MAX_LAYERS, MetadataKeys
from loragraft.archs.rope import Rope, read_rope
from loragraft.errors import FormatError, UnsupportedError

#: More experts than any model has; tables of names are made for as many.
_MAX_EXPERTS = 2**12


#: transformers' names of the activations that a file may name, each for all that compute the same.
ACTIVATIONS = ("silu", "gelu", "gelu_pytorch_tanh", "relu", "relu2", "quick_gelu", "tanh", "sigmoid")


@dataclass(frozen=True, slots=True)
class Sharpening:
    """Queries grow with their position: times 1 + slope ln(1 + floor((position + offset) / length))."""

    length: float
    offset: float
    slope: float


@dataclass(frozen=True, slots=True)
class Routing:
    """How tokens are shared out among experts, where a file says it."""

    gating: Literal["softmax", "sigmoid", "sparse_mixer"]
    normalize: bool
    """Whether the weights of the experts chosen are made to sum to 1."""
    scale: float = 1.0
    """Of these weights, after that."""
    groups: int = 1
    groups_used: int = 1
    group_best: int = 1
    """A group is as good as the sum of its best so many experts."""


@dataclass(frozen=True, slots=True)
class Latent:
    """Heads whose keys and values are made of one latent vector (multi-head latent attention, DeepSeek-V2, arXiv
    2405.04434). Sizes in elements."""

    rank: int
    """Of the latent vector."""
    plain: int
    """Of a head's query and key, what does not turn."""
    turned: int
    """And what does; all heads have one such key."""
    value: int
    """Of a head's value."""


@dataclass(frozen=True, slots=True)
class Recurrence:
    """Heads of linear attention whose states are [key_dim, value_dim] (`Op.GATED_DELTA`, `Op.STATE_SPACE`)."""

    heads: int
    key_heads: int
    """Groups of heads that share queries and keys (B and C)."""
    key_dim: int
    value_dim: int
    taps: int
    """Of the convolution before."""


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
    sharpening: Sharpening | None = None
    slopes: tuple[float, ...] = ()
    """Of each head: what its scores lose for every position that a key lies back; empty: nothing (`alibi_slopes`)."""
    chunk: int | None = None
    """Attention within the token's own chunk of so many positions; None: over all."""


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
    activation: str | None = None
    """Of feed-forward networks, one of `ACTIVATIONS`; None: the architecture's."""
    residual_scale: float = 1.0
    """Of what a layer's parts add to the residual stream."""
    logit_scale: float = 1.0
    routing: Routing | None = None
    """None: as the record has it."""
    latent: Latent | None = None
    recurrence: Recurrence | None = None
    predictors: int = 0
    """The last so many layers predict tokens further on (multi-token prediction): they are kept, and not run."""
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
        activation=_activation(keys),
    )


def _activation(keys: MetadataKeys) -> str | None:
    name = keys.text("hidden_activation", "")
    if name and name not in ACTIVATIONS:
        raise UnsupportedError(
            f"{keys.arch}.hidden_activation",
            "unknown activation",
            found=repr(name),
            expected=" or ".join(ACTIVATIONS),
        )
    return name or None


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


def alibi_slopes(heads: int, most: float) -> tuple[float, ...]:
    """Of ALiBi (Press et al. 2021, arXiv 2108.12409): powers of 2^(-most / n) for the largest power of two n <= heads,
    then, for the other heads, those between."""
    known = 1 << (heads.bit_length() - 1)
    first = [2 ** (-most * (i + 1) / known) for i in range(known)]
    return (*first, *(2 ** (-most * (2 * i + 1) / (2 * known)) for i in range(heads - known)))


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


def read_routing(
    keys: MetadataKeys, gating: Literal["softmax", "sigmoid"], *, normalize: bool, group_best: int = 1
) -> Routing:
    """As the file says; `gating` and `normalize` where it is silent."""
    number = keys.count("expert_gating_func", 0, least=0, most=3)
    if number == 3:
        raise UnsupportedError(f"{keys.arch}.expert_gating_func", "a softmax after the choice", found=number)
    groups = keys.count("expert_group_count", 1, most=_MAX_EXPERTS)
    return Routing(
        gating=gating if number == 0 else "softmax" if number == 1 else "sigmoid",
        normalize=keys.flag("expert_weights_norm", normalize),
        scale=keys.optional_number("expert_weights_scale") or 1.0,
        groups=groups,
        groups_used=keys.count("expert_group_used_count", groups, most=_MAX_EXPERTS),
        group_best=group_best,
    )


def dense_below(keys: MetadataKeys, h: Hparams, step: int = 1) -> Hparams:
    """The layers below `leading_dense_block_count`, and of the others all but every `step`th, are dense."""
    first = keys.count("leading_dense_block_count", 0, least=0, most=MAX_LAYERS)

    def layer(index: int, own: Layer) -> Layer:
        routed = index >= first and (index + 1) % step == 0
        return own if routed else replace(own, feed_forward="dense")

    return h.with_layers(layer)


def shared_sources(h: Hparams, shared: int) -> tuple[int, ...]:
    """Of each layer, the one whose keys and values it has: the last `shared` have those of the last layer of their kind
    (with a window or without) that has its own."""
    own = len(h.layers) - shared
    sources = list(range(max(own, 0)))
    for layer in h.layers[max(own, 0) :]:
        alike = [i for i in range(own) if (h.layers[i].window is None) == (layer.window is None)]
        if not alike:
            raise FormatError(
                f"{h.arch}.attention.shared_kv_layers",
                "no earlier layer of the same kind has keys",
                found=shared,
            )
        sources.append(alike[-1])
    return tuple(sources)
