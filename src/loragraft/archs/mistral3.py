"""Ministral 3 (Mistral AI): Llama with YaRN, whose queries grow with their position."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from loragraft.archs.arch import Arch, ConfigClass
from loragraft.archs.blocks import Attention, Decoder, Gated, swiglu
from loragraft.archs.config import Config
from loragraft.archs.hparams import Hparams, Layer, Sharpening, read_decoder
from loragraft.archs.keys import Computed, GgufModel, HeadDim, RopeParameters, usual
from loragraft.archs.keys.values import Count, shortest
from loragraft.archs.keys.windows import EVERY_LAYER
from loragraft.archs.llama import PERMUTED_ATTENTION
from loragraft.archs.metadata import MetadataKeys
from loragraft.archs.rope import standard_magnitude
from loragraft.archs.tensors import FEED_FORWARD, NORMS, OUTER
from loragraft.errors import UnsupportedError
from loragraft.formats.gguf.values import Metadata, Value


def _rotary(config: Config) -> Metadata:
    return {"rope.dimension_count": Value.u32(config.head_dim)}


def _scaling(config: Config) -> Metadata:
    rope = Config(config.path, config.rope)
    if config.rope["rope_type"] != "yarn":
        raise UnsupportedError(
            config.path, "RoPE of this kind in ministral3", found=config.rope["rope_type"], expected="yarn"
        )
    return {
        "rope.scaling.yarn_log_multiplier": Value.f32(rope.number("mscale_all_dim")),
        "attention.temperature_scale": Value.f32(rope.number("llama_4_scaling_beta")),
    }


def _assumed(factor: float, all_dim: float) -> float:
    return standard_magnitude(factor) / standard_magnitude(factor, all_dim)


class MinistralRope(RopeParameters):
    """As YaRN's, with what GGUF says of it in keys of their own."""

    def to_config(self, model: GgufModel) -> dict[str, Any]:
        found = super().to_config(model)
        multiplier = shortest(model.keys.number("rope.scaling.yarn_log_multiplier", 1.0))
        found["rope_scaling"] |= {"mscale": 1.0, "mscale_all_dim": multiplier}
        slope = model.keys.number("attention.temperature_scale", 0.0)
        found["rope_scaling"]["llama_4_scaling_beta"] = shortest(slope)
        return found


MINISTRAL3 = ConfigClass(
    "ministral3",
    "Ministral3ForCausalLM",
    keys=usual.usual_keys(
        norm=usual.rms_norm(),
        rope=MinistralRope(assumed=_assumed),
        head_dim=HeadDim(always=True),
        windows=EVERY_LAYER,
        more=(
            Count("vocab_size", ("vocab_size",)),
            Computed(frozenset(), _rotary),
            Computed(frozenset(), _scaling),
        ),
    ),
    defaults={
        "rms_norm_eps": 1e-5,
        "rope_theta": 1000000.0,
        "max_position_embeddings": 262144,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rope_parameters": {
            "rope_type": "yarn",
            "factor": 16.0,
            "original_max_position_embeddings": 16384,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "mscale_all_dim": 1.0,
            "mscale": 1.0,
            "llama_4_scaling_beta": 0.1,
        },
    },
)


def hyperparameters(keys: MetadataKeys) -> Hparams:
    h = read_decoder(keys)
    slope = keys.number("attention.temperature_scale", 0.0)
    length = keys.count("rope.scaling.original_context_length", h.context)
    multiplier = keys.number("rope.scaling.yarn_log_multiplier", 0.0, least=0.0)
    scaled = keys.text("rope.scaling.type", "linear") == "yarn"
    factor = keys.number("rope.scaling.factor", 1.0) if scaled else 1.0
    shrink = standard_magnitude(factor, multiplier)

    def layer(index: int, own: Layer) -> Layer:
        rope = own.rope and replace(own.rope, magnitude=own.rope.magnitude / shrink)
        return replace(own, rope=rope, sharpening=Sharpening(float(length), 0.0, slope) if slope else None)

    return h.with_layers(layer)


ARCH = Arch(
    name="mistral3",
    classes=(MINISTRAL3,),
    tensors=(*OUTER, *NORMS, *PERMUTED_ATTENTION, *FEED_FORWARD),
    hparams=hyperparameters,
    build=Decoder(attention=Attention(pairs="adjacent"), feed_forward=Gated(swiglu)),
)
