"""The parts that graphs are composed of. A `Part` takes the builder, the sizes, the value before it and the layer."""

from loragraft.archs.blocks.altup import AltUp
from loragraft.archs.blocks.attention import Attention
from loragraft.archs.blocks.decoder import (
    Branch,
    Decoder,
    Norm,
    Part,
    bare_layer_norm,
    by_feed_forward,
    by_mixer,
    layer_norm,
    rms_norm,
    rms_norm_if_there,
    routed_if_there,
    together,
)
from loragraft.archs.blocks.delta_net import GatedDeltaNet
from loragraft.archs.blocks.experts import Routed
from loragraft.archs.blocks.feed_forward import (
    ClampedSwiglu,
    Gated,
    Plain,
    gated_by,
    geglu,
    gelu,
    gelu_erf,
    relu,
    silu,
    squared_relu,
    swiglu,
)
from loragraft.archs.blocks.latent_attention import latent_attention
from loragraft.archs.blocks.mamba import Mamba2
from loragraft.archs.blocks.short_conv import gated_short_conv, short_conv

__all__ = [
    "AltUp",
    "Attention",
    "Branch",
    "ClampedSwiglu",
    "Decoder",
    "Gated",
    "GatedDeltaNet",
    "Mamba2",
    "Norm",
    "Part",
    "Plain",
    "Routed",
    "bare_layer_norm",
    "by_feed_forward",
    "by_mixer",
    "gated_by",
    "gated_short_conv",
    "geglu",
    "gelu",
    "gelu_erf",
    "latent_attention",
    "layer_norm",
    "relu",
    "rms_norm",
    "rms_norm_if_there",
    "routed_if_there",
    "short_conv",
    "silu",
    "squared_relu",
    "swiglu",
    "together",
]
