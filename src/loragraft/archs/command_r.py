"""Command R (Cohere) and Command R7B: attention and feed-forward side by side behind one LayerNorm, scaled logits."""

from __future__ import annotations

from dataclasses import replace

from loragraft.archs.arch import ATTENTION, Arch, ConfigClass
from loragraft.archs.blocks import Attention, Decoder, Gated, layer_norm, swiglu
from loragraft.archs.config import Config
from loragraft.archs.hparams import Hparams, Layer, read_decoder, read_windows
from loragraft.archs.keys import Computed, Count, HeadDim, Number, usual
from loragraft.archs.keys.windows import Windows
from loragraft.archs.metadata import MetadataKeys
from loragraft.archs.tensors import ATTENTION as ATTENTION_TENSORS
from loragraft.archs.tensors import FEED_FORWARD, OUTER, in_layer
from loragraft.formats.gguf.values import Metadata, Value

_SCALE = Number("logit_scale", "logit_scale")
_NO_SCALING = Computed(frozenset(), lambda config: {"rope.scaling.type": Value.string("none")})
_BUILD = Decoder(
    attention=Attention(pairs="adjacent"),
    feed_forward=Gated(swiglu),
    norm=layer_norm,
    pre_norms=("attn_norm", "attn_norm"),
    parallel=True,
)
_TENSORS = (*OUTER, in_layer("input_layernorm", "attn_norm"), *ATTENTION_TENSORS, *FEED_FORWARD)
_REQUIRES = {"attention_bias": (False,), "use_qk_norm": (False,)}
_DEFAULTS = {
    "layer_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 8192,
    "logit_scale": 0.0625,
    "tie_word_embeddings": True,
}


def hyperparameters(keys: MetadataKeys) -> Hparams:
    return replace(read_decoder(keys), logit_scale=keys.number("logit_scale", 1.0))


def _slides(layer: int) -> bool:
    return (layer + 1) % 4 != 0


def _slides_by_pattern(config: Config, layer: int) -> bool:
    return (layer + 1) % (
        config.optional_integer("sliding_window_pattern", "_sliding_window_pattern") or 4
    ) != 0


def hyperparameters2(keys: MetadataKeys) -> Hparams:
    """Layers without a window have no position embedding."""
    h = hyperparameters(keys)
    windows = read_windows(keys, len(h.layers), _slides)

    def layer(index: int, own: Layer) -> Layer:
        window = windows[index]
        return replace(own, window=window, rope=None if window is None else own.rope)

    return h.with_layers(layer)


def _rotary(config: Config) -> Metadata:
    return {"rope.dimension_count": Value.u32(config.head_dim)}


COHERE = ConfigClass(
    "cohere",
    "CohereForCausalLM",
    keys=usual.usual_keys(norm=usual.layer_norm("layer_norm_eps"), more=(_SCALE, _NO_SCALING)),
    defaults=_DEFAULTS,
    requires=_REQUIRES,
    ignores=frozenset(["model_max_length"]),
)
COHERE2 = ConfigClass(
    "cohere2",
    "Cohere2ForCausalLM",
    keys=usual.usual_keys(
        norm=usual.layer_norm("layer_norm_eps"),
        head_dim=HeadDim(),
        more=(
            _SCALE,
            Windows(
                layers=_slides_by_pattern,
                names=("sliding_window_pattern", "_sliding_window_pattern"),
                usual=_slides,
            ),
            Count("vocab_size", ("vocab_size",)),
            Computed(frozenset(), _rotary),
            _NO_SCALING,
        ),
    ),
    defaults={**_DEFAULTS, "sliding_window": 4096},
    requires={"rotary_pct": (None, 1.0)},
    biases={"attention_bias": ATTENTION},
)
ARCH = Arch(
    name="command-r",
    classes=(COHERE,),
    tensors=_TENSORS,
    hparams=hyperparameters,
    build=_BUILD,
)
ARCH2 = Arch(
    name="cohere2",
    classes=(COHERE2,),
    tensors=_TENSORS,
    hparams=hyperparameters2,
    build=_BUILD,
)
