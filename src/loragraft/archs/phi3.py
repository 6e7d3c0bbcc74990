"""Phi 3, 3.5 and 4 (Microsoft, arXiv 2404.14219): Llama with q, k and v in one tensor, gate and up in another, and
longrope in the models of long contexts."""

from __future__ import annotations

from typing import Any

from loragraft.archs.arch import Arch, ConfigClass
from loragraft.archs.blocks import Attention, Decoder, Gated, swiglu
from loragraft.archs.config import CONTEXT, Config
from loragraft.archs.hparams import Hparams, read_decoder
from loragraft.archs.keys import (
    FILE_TYPE,
    Computed,
    Count,
    GgufModel,
    HiddenAct,
    KvHeads,
    Layers,
    RopeParameters,
    RotaryPart,
    usual,
)
from loragraft.archs.keys.usual import FEED_FORWARD, HEADS, WIDTH
from loragraft.archs.longrope import long_factors, long_magnitude, original_context, with_long_factors
from loragraft.archs.metadata import MetadataKeys
from loragraft.archs.tensors import NORMS, OUTER, in_layer
from loragraft.formats.gguf.values import Metadata, Value


def _magnitude(config: Config) -> Metadata:
    """llama.cpp's converter writes it with the factors, before all else."""
    if not long_factors(config):
        return {}
    return {"rope.scaling.attn_factor": Value.f32(long_magnitude(config))}


def _original(config: Config) -> Metadata:
    return {"rope.scaling.original_context_length": Value.u32(original_context(config))}


def _original_back(model: GgufModel) -> dict[str, Any]:
    original = model.keys.count("rope.scaling.original_context_length", model.h.context)
    return {"original_max_position_embeddings": original}


def _window(config: Config) -> Metadata:
    """0 says that there is none."""
    given = config.given("sliding_window")
    return {"attention.sliding_window": Value.u32(0 if given is None else config.integer("sliding_window"))}


def _window_note(config: Config) -> list[str]:
    window = config.given("sliding_window")
    if window is None or config.integer("sliding_window") >= config.context:
        return []
    return [
        f"sliding_window = {window} is kept, but llama.cpp attends to everything in phi3: longer texts differ there"
    ]


def _window_back(model: GgufModel) -> dict[str, Any]:
    return {"sliding_window": model.h.layers[0].window}


PHI3 = ConfigClass(
    "phi3",
    "Phi3ForCausalLM",
    keys=(
        Computed(frozenset(), _magnitude),
        Count("context_length", CONTEXT),
        Computed(frozenset(), _original, _original_back),
        Count("embedding_length", WIDTH),
        Count("feed_forward_length", FEED_FORWARD),
        Layers(),
        Count("attention.head_count", HEADS),
        KvHeads(),
        usual.rms_norm(),
        RotaryPart(),
        RopeParameters(partial=True, long=True),
        FILE_TYPE,
        HiddenAct(),
        Computed(frozenset(["sliding_window"]), _window, _window_back, _window_note),
    ),
    defaults={
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
        "partial_rotary_factor": 1.0,
    },
    requires={"attention_bias": (False,)},
    ignores=frozenset(["embd_pdrop"]),
)


def hyperparameters(keys: MetadataKeys) -> Hparams:
    return with_long_factors(keys, read_decoder(keys))


ARCH = Arch(
    name="phi3",
    classes=(PHI3,),
    tensors=(
        *OUTER,
        *NORMS,
        in_layer("self_attn.qkv_proj", "attn_qkv"),
        in_layer("self_attn.o_proj", "attn_output"),
        in_layer("mlp.gate_up_proj", "ffn_up"),
        in_layer("mlp.down_proj", "ffn_down"),
    ),
    hparams=hyperparameters,
    build=Decoder(attention=Attention(pairs="halves"), feed_forward=Gated(swiglu)),
    extra_tensors=long_factors,
)
