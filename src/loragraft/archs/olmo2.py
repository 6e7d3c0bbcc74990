"""OLMo 2 (arXiv 2501.00656) and OLMo 3: norms behind the parts only, QK norm across all heads; OLMo 3 with windows."""

from __future__ import annotations

from dataclasses import replace

from loragraft.archs.arch import ATTENTION, Arch, ConfigClass
from loragraft.archs.blocks import Attention, Decoder, Gated, rms_norm, swiglu
from loragraft.archs.config import Config
from loragraft.archs.hparams import Hparams, Layer, read_decoder
from loragraft.archs.keys import LayerRopes, usual
from loragraft.archs.keys.windows import Windows
from loragraft.archs.metadata import MetadataKeys
from loragraft.archs.rope import read_rope
from loragraft.archs.tensors import ATTENTION as ATTENTION_TENSORS
from loragraft.archs.tensors import FEED_FORWARD, HEAD_NORMS, OUTER, in_layer


def _all_but_every_fourth(config: Config, layer: int) -> bool:
    return (layer + 1) % 4 != 0


def hyperparameters(keys: MetadataKeys) -> Hparams:
    """Context extension is for layers without a window."""
    h = read_decoder(keys)
    first = h.layers[0]
    local = read_rope(
        keys,
        first.key_dim,
        first.key_dim,
        base_key="rope.freq_base_swa",
        base=keys.number("rope.freq_base", 10000.0),
        scaled=False,
    )

    def layer(_: int, own: Layer) -> Layer:
        return own if own.window is None else replace(own, rope=local)

    return h.with_layers(layer)


_DEFAULTS = {"rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 2048}
OLMO2 = ConfigClass(
    "olmo2",
    "Olmo2ForCausalLM",
    keys=usual.usual_keys(norm=usual.rms_norm()),
    defaults=_DEFAULTS,
    biases={"attention_bias": ATTENTION},
)
OLMO3 = ConfigClass(
    "olmo3",
    "Olmo3ForCausalLM",
    keys=usual.usual_keys(
        norm=usual.rms_norm(),
        rope=LayerRopes(local_theta="rope_theta"),
        more=(Windows(layers=_all_but_every_fourth, names=(), usual=lambda layer: False),),
    ),
    defaults={**_DEFAULTS, "sliding_window": 4096},
    biases={"attention_bias": ATTENTION},
)
ARCH = Arch(
    name="olmo2",
    classes=(OLMO2, OLMO3),
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
