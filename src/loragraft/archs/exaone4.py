"""EXAONE 4 (LG, arXiv 2507.11407): norms behind the parts, QK norm, windows and RoPE in three of four layers."""

from __future__ import annotations

from dataclasses import replace

from loragraft.archs.arch import Arch, ConfigClass
from loragraft.archs.blocks import Attention, Decoder, Gated, rms_norm, swiglu
from loragraft.archs.config import Config
from loragraft.archs.hparams import Hparams, Layer, read_decoder, read_windows
from loragraft.archs.keys import Computed, Count, RopeParameters, usual
from loragraft.archs.keys.windows import Windows
from loragraft.archs.metadata import MetadataKeys
from loragraft.archs.tensors import ATTENTION as ATTENTION_TENSORS
from loragraft.archs.tensors import FEED_FORWARD, HEAD_NORMS, OUTER, in_layer


def _slides_by_pattern(config: Config, layer: int) -> bool:
    pattern = config.get("sliding_window_pattern")
    if isinstance(pattern, str) and pattern:
        return pattern[layer % len(pattern)] == "L"
    return (layer + 1) % (config.optional_integer("sliding_window_pattern") or 4) != 0


_WINDOWS = Windows(layers=_slides_by_pattern, names=("sliding_window_pattern",), usual=lambda layer: False)
#: How many layers a model has that llama.cpp takes the windows of.
_WITH_WINDOWS = 64


def _window_note(config: Config) -> list[str]:
    if config.n_layers == _WITH_WINDOWS or not any(_WINDOWS.read(config)):
        return []
    return [
        f"sliding_window = {config.get('sliding_window')} is kept, but llama.cpp attends to everything in exaone4 of "
        f"other than {_WITH_WINDOWS} layers: longer texts differ there"
    ]


def hyperparameters(keys: MetadataKeys) -> Hparams:
    """In a model with windows, layers without one have no position embedding."""
    h = read_decoder(keys)
    windows = read_windows(keys, len(h.layers), lambda layer: (layer + 1) % 4 != 0)
    mixed = any(window is not None for window in windows)

    def layer(index: int, own: Layer) -> Layer:
        window = windows[index]
        return replace(own, window=window, rope=None if mixed and window is None else own.rope)

    return h.with_layers(layer)


EXAONE4 = ConfigClass(
    "exaone4",
    "Exaone4ForCausalLM",
    keys=usual.usual_keys(
        norm=usual.rms_norm(),
        rope=RopeParameters(llama3=True),
        more=(
            Count("vocab_size", ("vocab_size",)),
            _WINDOWS,
            Computed(frozenset(), lambda config: {}, say=_window_note),
        ),
    ),
    defaults={
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 2048,
        "num_key_value_heads": 32,
        "sliding_window": 4096,
        "sliding_window_pattern": 4,
    },
)
ARCH = Arch(
    name="exaone4",
    classes=(EXAONE4,),
    tensors=(
        *OUTER,
        *ATTENTION_TENSORS,
        *HEAD_NORMS,
        in_layer("post_attention_layernorm", "post_attention_norm"),
        *FEED_FORWARD,
        in_layer("post_feedforward_layernorm", "post_ffw_norm"),
    ),
    hparams=hyperparameters,
    build=Decoder(
        attention=Attention(pairs="halves", head_norm=rms_norm),
        feed_forward=Gated(swiglu),
        pre_norms=(None, None),
        post_norms=("post_attention_norm", "post_ffw_norm"),
    ),
)
