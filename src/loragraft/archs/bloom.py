"""BLOOM (BigScience 2022, arXiv 2211.05100) and MPT (MosaicML 2023): scores that fall with the distance (ALiBi) instead
of positions; q, k and v in one tensor; LayerNorm. The first has biases and a norm of the embedding, the second has
neither."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from loragraft.archs.arch import Arch, ConfigClass
from loragraft.archs.blocks import Attention, Decoder, Plain, gelu, gelu_erf, layer_norm
from loragraft.archs.config import Config
from loragraft.archs.hparams import Hparams, alibi_slopes, read_decoder
from loragraft.archs.keys import FILE_TYPE, Computed, Count, GgufModel, Layers, Number
from loragraft.archs.keys.usual import EPSILON
from loragraft.archs.keys.values import shortest
from loragraft.archs.metadata import MetadataKeys
from loragraft.archs.tensors import QKV_BY_KIND, Tensor
from loragraft.errors import UnsupportedError
from loragraft.formats.gguf.values import Metadata, Value

_LINEARS = frozenset(["attn_qkv", "attn_output", "ffn_up", "ffn_down"])
_BIAS = "attention.max_alibi_bias"
_MOST = 8.0
"""Of the slopes, in transformers whatever config.json says."""


def _context(config: Config) -> Metadata:
    """As llama.cpp's converter has it. There is no end to what the model takes."""
    length = config.optional_integer("seq_length") or config.integer("hidden_size", "n_embed")
    return {"context_length": Value.u32(length)}


def _ff(config: Config) -> Metadata:
    return {"feed_forward_length": Value.u32(4 * config.integer("hidden_size", "n_embed", "d_model"))}


def _kv_heads(config: Config) -> Metadata:
    return {"attention.head_count_kv": Value.u32(config.integer("n_head", "num_attention_heads"))}


BLOOM = ConfigClass(
    "bloom",
    "BloomForCausalLM",
    keys=(
        Computed(frozenset(["seq_length"]), _context, lambda model: {"seq_length": model.h.context}),
        Count("embedding_length", ("hidden_size", "n_embed")),
        Computed(frozenset(), _ff),
        Layers(),
        Count("attention.head_count", ("n_head", "num_attention_heads")),
        Computed(frozenset(), _kv_heads),
        Number(EPSILON, "layer_norm_epsilon"),
        FILE_TYPE,
    ),
    defaults={"layer_norm_epsilon": 1e-5, "tie_word_embeddings": True},
    requires={"apply_residual_connection_post_layernorm": (False,)},
    ignores=frozenset(
        [
            "hidden_dropout",
            "masked_softmax_fusion",
            "slow_but_exact",
            "offset_alibi",
            "unk_token_id",
            "n_inner",
        ]
    ),
    biases={"": _LINEARS},
)


def _attention(config: Config) -> Config:
    """attn_config, with transformers' defaults."""
    given = config.get("attn_config") or {}
    return Config(config.path, given if isinstance(given, dict) else {}, {"alibi": True})


def _attention_keys(config: Config) -> Metadata:
    own = _attention(config)
    for key in ("kv_n_heads", "qk_ln"):
        if own.get(key):
            raise UnsupportedError(
                config.path, f"attn_config.{key} in mpt, which transformers leaves out", found=own.get(key)
            )
    clip = own.optional_number("clip_qkv")
    scale = own.optional_number("softmax_scale")
    return {
        **({} if clip is None else {"attention.clamp_kqv": Value.f32(clip)}),
        _BIAS: Value.f32(_MOST),
        **({} if scale is None else {"attention.scale": Value.f32(scale)}),
    }


def _scale_note(config: Config) -> list[str]:
    if _attention(config).optional_number("softmax_scale") is None:
        return []
    return ["attn_config.softmax_scale is kept, but llama.cpp computes mpt with that of the heads' size"]


def _attention_back(model: GgufModel) -> dict[str, Any]:
    clip, scale = model.h.clamp_qkv, model.h.attention_scale
    return {
        "attn_config": {
            "alibi": True,
            "alibi_bias_max": int(_MOST),
            "clip_qkv": None if clip is None else shortest(clip),
            "softmax_scale": None if scale is None else shortest(scale),
        }
    }


MPT = ConfigClass(
    "mpt",
    "MptForCausalLM",
    keys=(
        Count("context_length", ("max_seq_len",)),
        Count("embedding_length", ("d_model",)),
        Layers(),
        Computed(frozenset(["expansion_ratio"]), _ff, lambda model: {"expansion_ratio": 4}),
        Count("attention.head_count", ("n_heads",)),
        Number(EPSILON, "layer_norm_epsilon"),
        FILE_TYPE,
        Computed(frozenset(["attn_config"]), _attention_keys, _attention_back, _scale_note),
    ),
    defaults={"layer_norm_epsilon": 1e-5, "max_seq_len": 2048, "tie_word_embeddings": True},
    requires={"no_bias": (True,), "expansion_ratio": (4,)},
    ignores=frozenset(
        """
        emb_pdrop embedding_fraction init_device learned_pos_emb logit_scale norm_type resid_pdrop verbose
        """.split()  # noqa: SIM905
    ),
)


def hyperparameters(keys: MetadataKeys) -> Hparams:
    keys.cover("rope.dimension_count")
    most = keys.number(_BIAS, _MOST, least=0.0)
    clamp = keys.optional_number("attention.clamp_kqv")
    h = replace(read_decoder(keys), clamp_qkv=clamp, attention_scale=keys.optional_number("attention.scale"))
    slopes = alibi_slopes(h.layers[0].heads, most) if most else ()
    return h.with_layers(lambda index, own: replace(own, rope=None, slopes=slopes))


def _names(prefix: str, table: dict[str, str], layers: str, rows: Any = None) -> tuple[Tensor, ...]:
    return tuple(
        Tensor(f"{prefix}{layers}.{{i}}.{hf}", f"blk.{{i}}.{gguf}", rows if gguf == "attn_qkv" else None)
        for hf, gguf in table.items()
    )


_BLOOM_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attention.query_key_value": "attn_qkv",
    "self_attention.dense": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.dense_h_to_4h": "ffn_up",
    "mlp.dense_4h_to_h": "ffn_down",
}
_MPT_LAYER = {
    "norm_1": "attn_norm",
    "attn.Wqkv": "attn_qkv",
    "attn.out_proj": "attn_output",
    "norm_2": "ffn_norm",
    "ffn.up_proj": "ffn_up",
    "ffn.down_proj": "ffn_down",
}
ARCH = Arch(
    name="bloom",
    classes=(BLOOM,),
    tensors=(
        Tensor("lm_head", "output"),
        *(
            tensor
            for prefix in ("transformer.", "")
            for tensor in (
                Tensor(f"{prefix}word_embeddings", "token_embd"),
                Tensor(f"{prefix}word_embeddings_layernorm", "token_embd_norm"),
                Tensor(f"{prefix}ln_f", "output_norm"),
                *_names(prefix, _BLOOM_LAYER, "h", QKV_BY_KIND),
            )
        ),
    ),
    hparams=hyperparameters,
    build=Decoder(attention=Attention(pairs="halves"), feed_forward=Plain(gelu), norm=layer_norm),
)
MPT_ARCH = Arch(
    name="mpt",
    classes=(MPT,),
    tensors=(
        Tensor("lm_head", "output"),
        Tensor("transformer.wte", "token_embd"),
        Tensor("transformer.norm_f", "output_norm"),
        *_names("transformer.", _MPT_LAYER, "blocks"),
    ),
    hparams=hyperparameters,
    build=Decoder(attention=Attention(pairs="halves"), feed_forward=Plain(gelu_erf), norm=layer_norm),
)
