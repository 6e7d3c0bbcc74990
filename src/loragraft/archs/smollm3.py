"""SmolLM3 (Hugging Face): Llama without position embedding in every fourth layer (arXiv 2501.18795)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from loragraft.archs.arch import ATTENTION, FEED_FORWARD, Arch, ConfigClass
from loragraft.archs.blocks import Attention, Decoder, Gated, swiglu
from loragraft.archs.config import Config
from loragraft.archs.hparams import Hparams, Layer, read_decoder
from loragraft.archs.keys import Computed, HeadDim
from loragraft.archs.keys.rule import GgufModel
from loragraft.archs.llama import PERMUTED_ATTENTION, llama_keys
from loragraft.archs.metadata import MetadataKeys
from loragraft.archs.tensors import FEED_FORWARD as FEED_FORWARD_TENSORS
from loragraft.archs.tensors import NORMS, OUTER
from loragraft.errors import UnsupportedError
from loragraft.formats.gguf.values import Metadata


def _turns(layer: int) -> bool:
    return (layer + 1) % 4 != 0


def _check(config: Config) -> Metadata:
    """GGUF has no key for it: every fourth layer goes without."""
    layers = config.n_layers
    interval = config.optional_integer("no_rope_layer_interval") or 4
    given = config.get("no_rope_layers") or [int((i + 1) % interval != 0) for i in range(layers)]
    usual = [int(_turns(layer)) for layer in range(layers)]
    if given != usual:
        raise UnsupportedError(
            config.path,
            "a pattern of layers without position embedding that GGUF cannot express",
            found=f"no_rope_layers = {given!r}"[:120],
            expected="every fourth layer",
        )
    return {}


def _back(model: GgufModel) -> dict[str, Any]:
    return {
        "no_rope_layers": [int(_turns(layer)) for layer in range(len(model.h.layers))],
        "no_rope_layer_interval": 4,
    }


def hyperparameters(keys: MetadataKeys) -> Hparams:
    def layer(index: int, own: Layer) -> Layer:
        return own if _turns(index) else replace(own, rope=None)

    return read_decoder(keys).with_layers(layer)


SMOLLM3 = ConfigClass(
    "smollm3",
    "SmolLM3ForCausalLM",
    keys=llama_keys(
        head_dim=HeadDim(),
        more=(Computed(frozenset(["no_rope_layers", "no_rope_layer_interval"]), _check, _back),),
    ),
    defaults={
        "rms_norm_eps": 1e-6,
        "rope_theta": 2000000.0,
        "max_position_embeddings": 32768,
        "num_key_value_heads": 4,
        "tie_word_embeddings": True,
    },
    requires={"use_sliding_window": (False,)},
    ignores=frozenset(["sliding_window", "layer_types", "max_window_layers"]),
    biases={"attention_bias": ATTENTION, "mlp_bias": FEED_FORWARD},
    experts=False,
)
ARCH = Arch(
    name="smollm3",
    classes=(SMOLLM3,),
    tensors=(*OUTER, *NORMS, *PERMUTED_ATTENTION, *FEED_FORWARD_TENSORS),
    hparams=hyperparameters,
    build=Decoder(attention=Attention(pairs="adjacent"), feed_forward=Gated(swiglu)),
)
