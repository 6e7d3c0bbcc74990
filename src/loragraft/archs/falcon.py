"""Falcon (TII, arXiv 2311.16867): attention and feed-forward side by side, behind one LayerNorm or one each; one
key-value head, or groups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from loragraft.archs.arch import Arch, ConfigClass
from loragraft.archs.blocks import Attention, Decoder, Plain, gelu_erf, layer_norm
from loragraft.archs.config import Config
from loragraft.archs.hparams import Hparams, read_decoder
from loragraft.archs.keys import FILE_TYPE, Computed, Count, GgufModel, Layers, Number, PlainRope
from loragraft.archs.keys.usual import EPSILON, WIDTH
from loragraft.archs.metadata import MetadataKeys
from loragraft.archs.tensors import QKV_BY_KIND, Rows, Tensor
from loragraft.formats.gguf.values import Metadata, Value
from loragraft.graph.ops import Graph, TensorFact


def _feed_forward(config: Config) -> Metadata:
    width = config.optional_integer("ffn_hidden_size") or 4 * config.hidden_size
    return {"feed_forward_length": Value.u32(width)}


def _kv_heads(config: Config) -> Metadata:
    if config.get("new_decoder_architecture"):
        heads = config.optional_integer("num_kv_heads") or config.n_heads
    else:
        heads = 1 if config.get("multi_query") else config.n_heads
    return {"attention.head_count_kv": Value.u32(heads)}


def _back(model: GgufModel) -> dict[str, Any]:
    own = model.h.layers[0]
    new = own.kv_heads not in (1, own.heads) or "blk.0.attn_norm_2.weight" in model.shapes
    norms = 2 if "blk.0.attn_norm_2.weight" in model.shapes else 1
    return {
        "new_decoder_architecture": new,
        "multi_query": own.kv_heads == 1,
        "num_kv_heads": own.kv_heads,
        "num_ln_in_parallel_attn": norms if new else None,
    }


FALCON = ConfigClass(
    "falcon",
    "FalconForCausalLM",
    keys=(
        Count("context_length", ("max_position_embeddings",)),
        Computed(frozenset(), lambda config: {"tensor_data_layout": Value.string("jploski")}),
        Count("embedding_length", WIDTH),
        Computed(
            frozenset(["ffn_hidden_size"]),
            _feed_forward,
            lambda model: {"ffn_hidden_size": model.h.layers[0].ff},
        ),
        Layers(),
        Count("attention.head_count", ("num_attention_heads", "n_head")),
        Computed(
            frozenset(["new_decoder_architecture", "multi_query", "num_kv_heads", "num_ln_in_parallel_attn"]),
            _kv_heads,
            _back,
        ),
        Number(EPSILON, "layer_norm_epsilon"),
        PlainRope(),
        FILE_TYPE,
    ),
    defaults={
        "layer_norm_epsilon": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 2048,
        "multi_query": True,
        "parallel_attn": True,
        "new_decoder_architecture": False,
        "tie_word_embeddings": True,
    },
    requires={
        "activation": ("gelu",),
        "alibi": (False,),
        "bias": (False,),
        "parallel_attn": (True,),
    },
    ignores=frozenset(
        ["apply_residual_connection_post_layernorm", "num_key_value_heads", "intermediate_size"]
    ),
)


def hyperparameters(keys: MetadataKeys) -> Hparams:
    keys.cover("tensor_data_layout")
    return read_decoder(keys)


_ONE_NORM = Decoder(
    attention=Attention(pairs="halves"),
    feed_forward=Plain(gelu_erf),
    norm=layer_norm,
    pre_norms=("attn_norm", "attn_norm"),
    parallel=True,
)
_TWO_NORMS = replace(_ONE_NORM, pre_norms=("attn_norm_2", "attn_norm"))


def build(h: Hparams, tensors: Mapping[str, TensorFact]) -> Graph:
    return (_TWO_NORMS if "blk.0.attn_norm_2.weight" in tensors else _ONE_NORM)(h, tensors)


def _layer(hf: str, gguf: str, rows: Rows | None = None) -> Tensor:
    return Tensor(f"transformer.h.{{i}}.{hf}", f"blk.{{i}}.{gguf}", rows)


ARCH = Arch(
    name="falcon",
    classes=(FALCON,),
    tensors=(
        Tensor("transformer.word_embeddings", "token_embd"),
        Tensor("transformer.ln_f", "output_norm"),
        Tensor("lm_head", "output"),
        replace(_layer("ln_mlp", "attn_norm"), beside="blk.{i}.attn_norm_2.weight"),
        _layer("input_layernorm", "attn_norm"),
        _layer("ln_attn", "attn_norm_2"),
        _layer("self_attention.query_key_value", "attn_qkv", QKV_BY_KIND),
        _layer("self_attention.dense", "attn_output"),
        _layer("mlp.dense_h_to_4h", "ffn_up"),
        _layer("mlp.dense_4h_to_h", "ffn_down"),
    ),
    hparams=hyperparameters,
    build=build,
)
