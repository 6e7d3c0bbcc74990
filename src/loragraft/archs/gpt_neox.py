"""GPT-NeoX and Pythia (EleutherAI, arXiv 2204.06745): two LayerNorms whose parts stand side by side or in turn, q, k
and v in one tensor, RoPE on a part of each head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from loragraft.archs.arch import Arch, ConfigClass
from loragraft.archs.blocks import Attention, Decoder, Plain, gelu_erf, layer_norm
from loragraft.archs.config import CONTEXT
from loragraft.archs.hparams import Hparams, read_decoder
from loragraft.archs.keys import FILE_TYPE, Count, Flag, HiddenAct, Layers, Number, PlainRope, RotaryPart
from loragraft.archs.keys.usual import EPSILON, FEED_FORWARD, HEADS, WIDTH
from loragraft.archs.metadata import MetadataKeys
from loragraft.archs.tensors import QKV_BY_KIND, Tensor
from loragraft.graph.ops import Graph, TensorFact

_DEFAULTS: dict[str, Any] = {
    "layer_norm_eps": 1e-5,
    "rotary_emb_base": 10000.0,
    "max_position_embeddings": 2048,
    "rotary_pct": 0.25,
    "use_parallel_residual": True,
    "attention_bias": True,
}
GPT_NEOX = ConfigClass(
    "gpt_neox",
    "GPTNeoXForCausalLM",
    keys=(
        Count("context_length", CONTEXT),
        Count("embedding_length", WIDTH),
        Layers(),
        Count("feed_forward_length", FEED_FORWARD),
        RotaryPart(name="rotary_pct"),
        Count("attention.head_count", HEADS),
        Flag("use_parallel_residual", "use_parallel_residual"),
        Number(EPSILON, "layer_norm_eps"),
        PlainRope(partial=True, names=("rotary_emb_base",)),
        FILE_TYPE,
        HiddenAct("gelu"),
    ),
    defaults=_DEFAULTS,
    ignores=frozenset(["classifier_dropout", "num_key_value_heads", "partial_rotary_factor"]),
    biases={"attention_bias": frozenset(["attn_qkv", "attn_output"]), "": frozenset(["ffn_up", "ffn_down"])},
)


def hyperparameters(keys: MetadataKeys) -> Hparams:
    return replace(read_decoder(keys), extra={"parallel": keys.flag("use_parallel_residual", True)})


_IN_TURN = Decoder(attention=Attention(pairs="halves"), feed_forward=Plain(gelu_erf), norm=layer_norm)
_PARALLEL = replace(_IN_TURN, parallel=True)


def build(h: Hparams, tensors: Mapping[str, TensorFact]) -> Graph:
    return (_PARALLEL if h.extra["parallel"] else _IN_TURN)(h, tensors)


def _layer(hf: str, gguf: str, rows: Any = None) -> Tensor:
    return Tensor(f"gpt_neox.layers.{{i}}.{hf}", f"blk.{{i}}.{gguf}", rows)


ARCH = Arch(
    name="gptneox",
    classes=(GPT_NEOX,),
    tensors=(
        Tensor("gpt_neox.embed_in", "token_embd"),
        Tensor("gpt_neox.final_layer_norm", "output_norm"),
        Tensor("embed_out", "output"),
        _layer("input_layernorm", "attn_norm"),
        _layer("attention.query_key_value", "attn_qkv", QKV_BY_KIND),
        _layer("attention.dense", "attn_output"),
        _layer("post_attention_layernorm", "ffn_norm"),
        _layer("mlp.dense_h_to_4h", "ffn_up"),
        _layer("mlp.dense_4h_to_h", "ffn_down"),
    ),
    hparams=hyperparameters,
    build=build,
)
