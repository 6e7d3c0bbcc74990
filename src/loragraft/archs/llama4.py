"""Llama 4 (Meta 2025), its language model: attention in chunks with RoPE; in every fourth layer attention over all,
without RoPE and with queries that grow with their position; one expert for each token, whose gate scales its input,
beside a shared one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from loragraft.archs.arch import ATTENTION, Arch, ConfigClass
from loragraft.archs.blocks import Attention, Decoder, Gated, Routed, routed_if_there, swiglu
from loragraft.archs.config import Config
from loragraft.archs.hparams import Hparams, Layer, Routing, Sharpening, read_decoder
from loragraft.archs.keys import Computed, Count, GgufModel, HeadDim, Rule
from loragraft.archs.keys.values import shortest
from loragraft.archs.llama import llama_keys
from loragraft.archs.metadata import MetadataKeys
from loragraft.archs.tensors import ATTENTION as ATTENTION_TENSORS
from loragraft.archs.tensors import NORMS, OUTER, Part, Tensor, experts, in_layer
from loragraft.errors import CheckpointError, UnsupportedError
from loragraft.formats.gguf.values import Metadata, Value, ValueType
from loragraft.graph.build import GraphBuilder, Ref

_CHUNK, _PATTERN = "attention.sliding_window", "attention.sliding_window_pattern"
_SCALE, _LENGTH = "attention.temperature_scale", "attention.temperature_length"
_QK_NORM = "attention.use_qk_norm"
"""Our own key, where it is not what llama.cpp assumes."""
_NO_CHUNKS = {_CHUNK: Value.u32(0)}
_USUAL_CHUNK, _USUAL_SCALE, _USUAL_LENGTH = 8192, 0.1, 8192


def _usually_turns(layer: int) -> bool:
    return (layer + 1) % 4 != 0


def _usually_normed(experts: int) -> bool:
    """llama.cpp tells the model with 128 experts, which has no norm, by their number."""
    return experts != 128


def _turns(config: Config) -> list[bool]:
    """By layer, whether it has RoPE; these are the ones in chunks."""
    given, layers = config.get("no_rope_layers") or None, config.n_layers
    interval = config.optional_integer("no_rope_layer_interval") or 4
    turns = [(i + 1) % interval != 0 for i in range(layers)]
    if given is not None:
        if not isinstance(given, list) or len(given) != layers:
            raise CheckpointError(
                config.path, "bad no_rope_layers", found=repr(given)[:80], expected=f"{layers} numbers"
            )
        turns = [bool(one) for one in given]
    return turns


def _attention(config: Config) -> Metadata:
    """What llama.cpp assumes, and its converter does not write."""
    turns, types = _turns(config), config.get("layer_types")
    chunk = config.optional_integer("attention_chunk_size") if config.given("attention_chunk_size") else None
    usual = ["chunked_attention" if turn else "full_attention" for turn in turns]
    if chunk is None or types == ["full_attention"] * len(turns):
        if not all(turns):
            raise UnsupportedError(config.path, "layers without RoPE beside no layers in chunks", found=turns)
        return {_CHUNK: Value.u32(0)}
    if types not in (None, usual):
        raise UnsupportedError(
            config.path, "chunks in other layers than those with RoPE", found=repr(types)[:80]
        )
    keys: Metadata = {} if chunk == _USUAL_CHUNK else {_CHUNK: Value.u32(chunk)}
    if turns != [_usually_turns(i) for i in range(len(turns))]:
        keys[_PATTERN] = Value.numbers(ValueType.BOOL, [int(turn) for turn in turns])
    scale = config.number("attn_scale") if config.get("attn_temperature_tuning") else 0.0
    length = config.integer("floor_scale")
    if scale != _USUAL_SCALE:
        keys[_SCALE] = Value.f32(scale)
    if length != _USUAL_LENGTH:
        keys[_LENGTH] = Value.u32(length)
    return keys


def _unusual(config: Config) -> list[str]:
    """What of it llama.cpp computes otherwise."""
    said = {
        _CHUNK: "attention_chunk_size",
        _PATTERN: "no_rope_layers",
        _SCALE: "attn_scale",
        _LENGTH: "floor_scale",
    }
    keys = _attention(config)
    own = [name for key, name in said.items() if key in keys and keys != _NO_CHUNKS]
    if not own:
        return []
    return [
        f"{', '.join(own)} kept, but llama.cpp computes with chunks of 8192, every fourth layer without RoPE, and a "
        "temperature of 0.1 from 8192 tokens on"
    ]


def _attention_back(model: GgufModel) -> dict[str, Any]:
    layers, sharp = model.h.layers, [layer.sharpening for layer in model.h.layers if layer.sharpening]
    chunks = [layer.chunk for layer in layers if layer.chunk]
    return {
        "no_rope_layers": [int(layer.rope is not None) for layer in layers],
        "layer_types": ["chunked_attention" if layer.chunk else "full_attention" for layer in layers],
        "attention_chunk_size": chunks[0] if chunks else None,
        "attn_temperature_tuning": bool(sharp),
        "attn_scale": shortest(sharp[0].slope) if sharp else _USUAL_SCALE,
        "floor_scale": int(sharp[0].length) if sharp else model.keys.count(_LENGTH, _USUAL_LENGTH),
    }


def _norm(config: Config) -> Metadata:
    given = bool(config.get("use_qk_norm"))
    usual = _usually_normed(config.integer("num_local_experts"))
    return {} if given == usual else {_QK_NORM: Value.boolean(given)}


def _norm_back(model: GgufModel) -> dict[str, Any]:
    return {"use_qk_norm": model.h.extra["qk_norm"]}


def _routed_back(model: GgufModel) -> dict[str, Any]:
    layers = range(len(model.h.layers))
    return {"moe_layers": [i for i in layers if f"blk.{i}.ffn_gate_inp.weight" in model.shapes]}


def _keys() -> tuple[Rule, ...]:
    """Llama's, but `intermediate_size` is the experts'."""
    keys = llama_keys(
        experts=True,
        head_dim=HeadDim(always=True),
        more=(
            Count("interleave_moe_layer_step", ("interleave_moe_layer_step",)),
            Count("expert_feed_forward_length", ("intermediate_size",)),
            Computed(frozenset(["moe_layers"]), lambda config: {}, _routed_back),
            Computed(
                frozenset(
                    """
                    attention_chunk_size attn_scale attn_temperature_tuning floor_scale layer_types no_rope_layers
                    no_rope_layer_interval
                    """.split()  # noqa: SIM905
                ),
                _attention,
                _attention_back,
                _unusual,
            ),
            Computed(frozenset(["use_qk_norm"]), _norm, _norm_back),
        ),
    )
    return (*keys[:3], Count("feed_forward_length", ("intermediate_size_mlp",)), *keys[4:])


LLAMA4 = ConfigClass(
    "llama4_text",
    "Llama4ForCausalLM",
    keys=_keys(),
    defaults={
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "max_position_embeddings": 131072,
        "intermediate_size": 8192,
        "intermediate_size_mlp": 16384,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "num_local_experts": 16,
        "num_experts_per_tok": 1,
        "interleave_moe_layer_step": 1,
        "use_qk_norm": True,
        "attention_chunk_size": _USUAL_CHUNK,
        "attn_temperature_tuning": True,
        "floor_scale": _USUAL_LENGTH,
        "attn_scale": _USUAL_SCALE,
    },
    requires={"num_experts_per_tok": (1,)},
    biases={"attention_bias": ATTENTION},
)


def hyperparameters(keys: MetadataKeys) -> Hparams:
    keys.cover("interleave_moe_layer_step")
    h = read_decoder(keys)
    if h.experts_used > 1:
        raise UnsupportedError(
            f"{keys.arch}.expert_used_count", "several experts whose inputs are scaled", found=h.experts_used
        )
    layers = len(h.layers)
    chunk = keys.count(_CHUNK, _USUAL_CHUNK, least=0) or None
    turns = keys.flags(_PATTERN, layers) or tuple(chunk is None or _usually_turns(i) for i in range(layers))
    slope, length = keys.number(_SCALE, _USUAL_SCALE), keys.count(_LENGTH, _USUAL_LENGTH)

    def layer(index: int, own: Layer) -> Layer:
        if turns[index]:
            return replace(own, window=None, chunk=chunk)
        sharpening = Sharpening(float(length), 1.0, slope) if slope else None
        return replace(own, window=None, rope=None, sharpening=sharpening)

    normed = keys.flag(_QK_NORM, _usually_normed(h.experts))
    routing = Routing("sigmoid", normalize=False)
    return replace(h.with_layers(layer), routing=routing, extra={"qk_norm": normed})


def _head_norm(g: GraphBuilder, h: Hparams, x: Ref, name: str) -> Ref:
    """Without a weight, in layers with RoPE."""
    own = h.layers[int(name.split(".")[1])]
    if own.rope is None or not h.extra["qk_norm"]:
        return x
    return g.plain_rms_norm(x, own.key_dim, h.norm_eps, name)


def _experts() -> tuple[Tensor, ...]:
    """One by one, as quantized checkpoints have them (llm-compressor); or stacks [experts, in, out], gate before up."""
    stack, blk = "model.layers.{i}.feed_forward.experts", "blk.{i}"
    return experts("feed_forward") + tuple(
        Tensor(f"{stack}.{hf}", f"{blk}.{gguf}.weight", rows, exact=True, transposed=True)
        for hf, gguf, rows in (
            ("down_proj", "ffn_down_exps", None),
            ("gate_up_proj", "ffn_gate_exps", Part(0)),
            ("gate_up_proj", "ffn_up_exps", Part(1)),
        )
    )


def _feed_forward(hf: str, gguf: str) -> tuple[Tensor, ...]:
    return tuple(in_layer(f"{hf}{part}_proj", f"ffn_{part}{gguf}") for part in ("gate", "up", "down"))


ARCH = Arch(
    name="llama4",
    classes=(LLAMA4,),
    tensors=(
        *OUTER,
        *NORMS,
        *ATTENTION_TENSORS,
        *_feed_forward("feed_forward.", ""),
        in_layer("feed_forward.router", "ffn_gate_inp"),
        *_experts(),
        *_feed_forward("feed_forward.shared_expert.", "_shexp"),
    ),
    hparams=hyperparameters,
    build=Decoder(
        attention=Attention(pairs="adjacent", head_norm=_head_norm, norm_last=True),
        feed_forward=routed_if_there(
            dense=Gated(swiglu), experts=Routed(normalize=False, gating="sigmoid", scaled_inputs=True)
        ),
    ),
)
