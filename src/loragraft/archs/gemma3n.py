"""Gemma 3n, its text model: a residual stream of four values (`blocks.altup`), an embedding of every token for each
layer, layers that take up the keys and values of an earlier one, and gates of which only what lies far above the mean
counts (Gemma Team 2025)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from statistics import NormalDist
from typing import Any

import numpy as np

from loragraft.archs.arch import ATTENTION, Arch, ConfigClass
from loragraft.archs.blocks import AltUp, Attention, geglu, rms_norm
from loragraft.archs.config import CONTEXT, Config
from loragraft.archs.hparams import Hparams, Layer, read_decoder, read_windows, shared_sources
from loragraft.archs.keys import (
    FILE_TYPE,
    Computed,
    Count,
    GgufModel,
    HeadDim,
    KvHeads,
    LayerRopes,
    Layers,
    Number,
    Windows,
    usual,
)
from loragraft.archs.keys.values import shortest
from loragraft.archs.metadata import MetadataKeys
from loragraft.archs.rope import read_rope
from loragraft.archs.tensors import ATTENTION as ATTENTION_TENSORS
from loragraft.archs.tensors import FEED_FORWARD, HEAD_NORMS, OUTER, Tensor, in_layer
from loragraft.errors import CheckpointError, FormatError
from loragraft.formats.gguf.values import Metadata, Value, ValueType
from loragraft.graph.build import GraphBuilder, Ref
from loragraft.graph.ops import Op

_CUTS = "activation_sparsity_scale"
_PATTERN = "attention.sliding_window_pattern"
_WINDOWS = Windows(layers=lambda config, layer: (layer + 1) % 5 > 0, names=())


def hyperparameters(keys: MetadataKeys) -> Hparams:
    h = read_decoder(keys)
    first = h.layers[0]
    rotary = first.key_dim if first.rope is None else first.rope.rotary
    local = read_rope(keys, rotary, first.key_dim, base_key="rope.freq_base_swa", scaled=False)
    windows = read_windows(keys, len(h.layers), lambda layer: layer % 5 < 4)

    def layer(index: int, own: Layer) -> Layer:
        return replace(own, window=windows[index], rope=own.rope if windows[index] is None else local)

    h = h.with_layers(layer)
    altup = keys.count("altup.num_inputs", 4, least=2, most=16)
    shared = keys.count("attention.shared_kv_layers", 0, least=0)
    return replace(
        h,
        embedding_scale=h.width**0.5,
        attention_scale=1.0,
        logit_softcap=keys.optional_number("final_logit_softcapping"),
        extra={
            "altup": altup,
            "active": keys.count("altup.active_idx", 0, least=0, most=altup - 1),
            "per_layer": keys.count("embedding_length_per_layer_input"),
            "shared": shared,
            "sources": shared_sources(h, shared),
            "cuts": _cuts(keys, len(h.layers)),
        },
    )


def _cuts(keys: MetadataKeys, layers: int) -> tuple[float, ...]:
    """By layer: how many standard deviations above the mean a gate must lie to count; -inf: all count."""
    data = keys.get(_CUTS)
    if (
        not isinstance(data, np.ndarray)
        or data.dtype.kind != "f"
        or len(data) != layers
        or not (data < np.inf).all()
    ):
        name, wanted = f"{keys.arch}.{_CUTS}", f"{layers} numbers, or -inf"
        raise FormatError(name, "bad metadata value", found=repr(data)[:80], expected=wanted)
    return tuple(float(cut) for cut in data)


def feed_forward(g: GraphBuilder, h: Hparams, x: Ref, layer: int) -> Ref:
    blk, cut = f"blk.{layer}", h.extra["cuts"][layer]
    gate, up = g.linear(x, f"{blk}.ffn_gate"), g.linear(x, f"{blk}.ffn_up")
    if cut > -math.inf:
        gate = g.add(Op.GAUSSIAN_TOP_K, (gate,), label=f"{blk}.ffn_top", deviations=cut)
    return g.linear(geglu(g, gate, up, f"{blk}.ffn_act"), f"{blk}.ffn_down")


def _without_keys(h: Hparams, name: str) -> bool:
    """Published files have keys and values of all layers; those that take up an earlier one's do without."""
    parts = name.split(".")
    if len(parts) < 4 or parts[0] != "blk" or not parts[1].isdecimal():
        return False
    layer = int(parts[1])
    owned = layer < len(h.layers) and h.extra["sources"][layer] == layer
    return not owned and parts[2] in ("attn_k", "attn_v", "attn_k_norm")


# ---- config.json ----


def _widths(config: Config) -> Metadata:
    """transformers gives each layer its own."""
    given = config.get("intermediate_size")
    if not isinstance(given, list):
        given = [config.integer("intermediate_size")] * config.n_layers
    if len(given) != config.n_layers or not all(type(width) is int and 0 < width < 2**31 for width in given):
        raise CheckpointError(
            config.path,
            "bad intermediate_size",
            found=repr(given)[:80],
            expected=f"{config.n_layers} whole numbers > 0",
        )
    return {"feed_forward_length": Value.numbers(ValueType.INT32, given)}


def _deviations(share: object) -> float:
    """What a standard normal value lies below with the probability `share`, in float32 as torch has it (`Normal.icdf`):
    sqrt(2) erfinv(2 share - 1)."""
    inner = np.float32(2) * np.float32(share) - np.float32(1)  # type: ignore[arg-type]
    if inner <= -1:
        return -math.inf
    inverse = np.float32(NormalDist().inv_cdf((float(inner) + 1) / 2) / math.sqrt(2))
    return float(inverse * np.float32(math.sqrt(2)))


def _sparsity(config: Config) -> Metadata:
    given = config.get("activation_sparsity_pattern")
    if given is None:
        sparse = 10 if config.n_layers > 10 else 0
        given = [0.95] * sparse + [0.0] * (config.n_layers - sparse)
    if (
        not isinstance(given, list)
        or len(given) != config.n_layers
        or not all(type(share) in (int, float) and 0 <= share < 1 for share in given)
        or any(np.float32(share) >= 1 for share in given)
    ):
        raise CheckpointError(
            config.path,
            "bad activation_sparsity_pattern",
            found=repr(given)[:80],
            expected=f"{config.n_layers} numbers from 0 to below 1",
        )
    return {_CUTS: Value.numbers(ValueType.FLOAT32, [_deviations(share) for share in given])}


def _sparsity_back(model: GgufModel) -> dict[str, Any]:
    return {"activation_sparsity_pattern": [shortest(NormalDist().cdf(cut)) for cut in model.h.extra["cuts"]]}


def _shared(config: Config) -> Metadata:
    count = config.optional_integer("num_kv_shared_layers") or 0
    if count >= config.n_layers:
        raise CheckpointError(
            config.path, "bad num_kv_shared_layers", found=count, expected=f"less than {config.n_layers}"
        )
    return {"attention.shared_kv_layers": Value.u32(count)}


def _pattern(config: Config) -> Metadata:
    slides = [int(window is not None) for window in _WINDOWS.read(config)]
    return {_PATTERN: Value.numbers(ValueType.BOOL, slides)}


def _count(gguf: str, name: str, check: Callable[[int], bool], expected: str) -> Computed:
    """A whole number whose 0 is written too."""

    def write(config: Config) -> Metadata:
        found = config.optional_integer(name) or 0
        if not check(found):
            raise CheckpointError(config.path, f"bad {name}", found=found, expected=expected)
        return {gguf: Value.u32(found)}

    return Computed(frozenset([name]), write, lambda model: {name: model.keys.count(gguf, least=0)})


TEXT = ConfigClass(
    "gemma3n_text",
    "Gemma3nForCausalLM",
    keys=(
        Layers(),
        Count("context_length", CONTEXT),
        Count("embedding_length", usual.WIDTH),
        Computed(
            frozenset(["intermediate_size"]),
            _widths,
            lambda model: {"intermediate_size": [layer.ff for layer in model.h.layers]},
        ),
        Count("attention.head_count", usual.HEADS),
        KvHeads(),
        LayerRopes(),
        usual.rms_norm(),
        HeadDim(always=True),
        FILE_TYPE,
        Number("final_logit_softcapping", "final_logit_softcapping"),
        Computed(
            frozenset(["sliding_window", "layer_types"]),
            lambda config: {"attention.sliding_window": Value.u32(config.integer("sliding_window"))},
            _WINDOWS.to_config,
        ),
        _count("altup.active_idx", "altup_active_idx", lambda n: 0 <= n < 16, "0 to 15"),
        _count("altup.num_inputs", "altup_num_inputs", lambda n: 2 <= n <= 16, "2 to 16"),
        Count("embedding_length_per_layer_input", ("hidden_size_per_layer_input",)),
        Computed(
            frozenset(["num_kv_shared_layers"]),
            _shared,
            lambda model: {"num_kv_shared_layers": model.h.extra["shared"]},
        ),
        Computed(frozenset(["activation_sparsity_pattern"]), _sparsity, _sparsity_back),
        Computed(
            frozenset(["vocab_size_per_layer_input", "laurel_rank"]),
            _pattern,
            lambda model: {
                "vocab_size_per_layer_input": model.shapes["per_layer_token_embd.weight"][0],
                "laurel_rank": model.shapes["blk.0.laurel_l.weight"][0],
            },
        ),
    ),
    defaults={
        "vocab_size": 262400,
        "hidden_size": 2048,
        "intermediate_size": 16384,
        "num_hidden_layers": 35,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 256,
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
        "sliding_window": 512,
        "final_logit_softcapping": 30.0,
        "hidden_size_per_layer_input": 256,
        "altup_num_inputs": 4,
        "num_kv_shared_layers": 15,
        "tie_word_embeddings": True,
    },
    requires={"hidden_activation": ("gelu_pytorch_tanh",), "altup_correct_scale": (True,)},
    ignores=frozenset(["altup_coef_clip"]),
    biases={"attention_bias": ATTENTION},
)


def _others(hf: str, gguf: str) -> Tensor:
    """A stack of matrices, one for each value of the stream but the first."""
    return Tensor(f"model.{hf}.{{e}}", gguf, stack=lambda h: int(h.extra["altup"]) - 1)


ARCH = Arch(
    name="gemma3n",
    classes=(TEXT,),
    tensors=(
        *OUTER,
        Tensor("model.embed_tokens_per_layer", "per_layer_token_embd", padded=True),
        Tensor("model.per_layer_model_projection", "per_layer_model_proj"),
        Tensor("model.per_layer_projection_norm", "per_layer_proj_norm"),
        _others("altup_projections", "altup_proj"),
        _others("altup_unembed_projections", "altup_unembd_proj"),
        in_layer("input_layernorm", "attn_norm"),
        *ATTENTION_TENSORS,
        *HEAD_NORMS,
        in_layer("post_attention_layernorm", "post_attention_norm"),
        in_layer("pre_feedforward_layernorm", "ffn_norm"),
        *FEED_FORWARD,
        in_layer("post_feedforward_layernorm", "post_ffw_norm"),
        in_layer("per_layer_input_gate", "inp_gate"),
        in_layer("per_layer_projection", "proj"),
        in_layer("post_per_layer_input_norm", "post_norm"),
        in_layer("altup.correction_coefs", "altup_correct_coef"),
        Tensor(
            "model.layers.{i}.altup.correct_output_scale", "blk.{i}.altup_correct_scale.weight", exact=True
        ),
        in_layer("altup.prediction_coefs", "altup_predict_coef"),
        in_layer("altup.modality_router", "altup_router"),
        in_layer("altup.router_norm", "altup_router_norm"),
        in_layer("laurel.linear_left", "laurel_l"),
        in_layer("laurel.linear_right", "laurel_r"),
        in_layer("laurel.post_laurel_norm", "laurel_post_norm"),
    ),
    hparams=hyperparameters,
    build=AltUp(
        attention=Attention(
            pairs="halves",
            head_norm=rms_norm,
            value_norm=True,
            source=lambda h, layer: h.extra["sources"][layer],
        ),
        feed_forward=feed_forward,
        unused=_without_keys,
    ),
)
