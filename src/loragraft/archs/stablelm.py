"""StableLM: LayerNorm, SwiGLU, RoPE on a part of each head, biases of q, k and v by flag."""

from __future__ import annotations

from typing import Any

from loragraft.archs.arch import QKV, Arch, ConfigClass
from loragraft.archs.blocks import Attention, Decoder, Gated, layer_norm, swiglu
from loragraft.archs.config import CONTEXT, Config
from loragraft.archs.keys import FILE_TYPE, Computed, Count, KvHeads, Layers, RotaryPart
from loragraft.archs.keys.rule import GgufModel
from loragraft.archs.keys.usual import EPSILON, FEED_FORWARD, HEADS, WIDTH
from loragraft.archs.keys.values import Number, shortest
from loragraft.archs.tensors import ATTENTION as ATTENTION_TENSORS
from loragraft.archs.tensors import FEED_FORWARD as FEED_FORWARD_TENSORS
from loragraft.archs.tensors import NORMS, OUTER
from loragraft.errors import UnsupportedError
from loragraft.formats.gguf.values import Metadata, Value

_THETA = 10000.0  # llama.cpp's where the file has none, and its converter writes none


def _theta(config: Config) -> Metadata:
    rope = config.rope
    if rope["rope_type"] != "default":
        raise UnsupportedError(config.path, "RoPE scaling on architecture stablelm", found=rope["rope_type"])
    theta = float(rope.get("rope_theta") or _THETA)
    return {} if theta == _THETA else {"rope.freq_base": Value.f32(theta)}


def _theta_back(model: GgufModel) -> dict[str, Any]:
    return {"rope_theta": shortest(model.keys.number("rope.freq_base", _THETA))}


def _parallel(config: Config) -> Metadata:
    return {"use_parallel_residual": Value.boolean(bool(config.get("use_parallel_residual")))}


def _parallel_back(model: GgufModel) -> dict[str, Any]:
    return {"use_parallel_residual": model.keys.flag("use_parallel_residual", False)}


STABLELM = ConfigClass(
    "stablelm",
    "StableLmForCausalLM",
    keys=(
        Count("context_length", CONTEXT),
        Count("embedding_length", WIDTH),
        Layers(),
        Count("feed_forward_length", FEED_FORWARD),
        RotaryPart(),
        Count("attention.head_count", HEADS),
        KvHeads(),
        Computed(frozenset(["use_parallel_residual"]), _parallel, _parallel_back),
        Number(EPSILON, "layer_norm_eps"),
        Computed(
            frozenset(["rope_theta", "rope_parameters", "rope_scaling", "original_max_position_embeddings"]),
            _theta,
            _theta_back,
        ),
        FILE_TYPE,
    ),
    defaults={
        "layer_norm_eps": 1e-5,
        "rope_theta": _THETA,
        "max_position_embeddings": 4096,
        "partial_rotary_factor": 0.25,
        "use_parallel_residual": False,
    },
    requires={"hidden_act": ("silu",), "qk_layernorm": (False,), "use_parallel_residual": (False,)},
    biases={"use_qkv_bias": QKV},
)
ARCH = Arch(
    name="stablelm",
    classes=(STABLELM,),
    tensors=(*OUTER, *NORMS, *ATTENTION_TENSORS, *FEED_FORWARD_TENSORS),
    build=Decoder(attention=Attention(pairs="halves"), feed_forward=Gated(swiglu), norm=layer_norm),
    fixed={"use_parallel_residual": False},
)
