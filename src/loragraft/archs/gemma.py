"""Gemma (arXiv 2403.08295) and Gemma 2 (arXiv 2408.00118): scaled embeddings, norms stored less 1, GeGLU; Gemma 2 with
norms around both parts, soft caps, and windows in every other layer."""

from __future__ import annotations

from dataclasses import replace

from loragraft.archs.arch import ATTENTION, Arch, ConfigClass
from loragraft.archs.blocks import Attention, Decoder, Gated, geglu
from loragraft.archs.config import CONTEXT
from loragraft.archs.gemma3 import AttentionScale
from loragraft.archs.hparams import Hparams, Layer, read_decoder, read_windows
from loragraft.archs.keys import FILE_TYPE, Count, HeadDim, KvHeads, Layers, Number, PlainRope, usual
from loragraft.archs.keys.usual import FEED_FORWARD as FEED_FORWARD_KEYS
from loragraft.archs.keys.usual import HEADS, WIDTH
from loragraft.archs.keys.windows import Windows
from loragraft.archs.metadata import MetadataKeys
from loragraft.archs.tensors import ATTENTION as ATTENTION_TENSORS
from loragraft.archs.tensors import FEED_FORWARD, PLUS_ONE, Tensor, in_layer

_SCALE = AttentionScale(46)


def _slides(layer: int) -> bool:
    return layer % 2 == 0


_KEYS = (
    Count("context_length", CONTEXT),
    Count("embedding_length", WIDTH),
    Layers(),
    Count("feed_forward_length", FEED_FORWARD_KEYS),
    Count("attention.head_count", HEADS),
    KvHeads(),
    usual.rms_norm(),
    HeadDim(always=True),
    PlainRope(),
    FILE_TYPE,
)


def hyperparameters(keys: MetadataKeys) -> Hparams:
    h = read_decoder(keys)
    return replace(h, embedding_scale=h.width**0.5)


def hyperparameters2(keys: MetadataKeys) -> Hparams:
    h = hyperparameters(keys)
    windows = read_windows(keys, len(h.layers), _slides)
    first = h.layers[0]

    def layer(index: int, own: Layer) -> Layer:
        return replace(own, window=windows[index])

    known = _SCALE.usual(len(h.layers), h.width, first.heads, first.key_dim)
    return replace(
        h.with_layers(layer),
        attention_scale=keys.number("attention.scale", known, least=0.0),
        attention_softcap=keys.optional_number("attn_logit_softcapping"),
        logit_softcap=keys.optional_number("final_logit_softcapping"),
    )


GEMMA = ConfigClass(
    "gemma",
    "GemmaForCausalLM",
    keys=_KEYS,
    defaults={
        "head_dim": 256,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "num_key_value_heads": 16,
        "tie_word_embeddings": True,
    },
    requires={
        "hidden_act": ("gelu_pytorch_tanh", "gelu"),
        "hidden_activation": (None, "gelu_pytorch_tanh"),
        "use_bidirectional_attention": (None, False),
        "tie_word_embeddings": (True,),
    },
    biases={"attention_bias": ATTENTION},
)
GEMMA2 = ConfigClass(
    "gemma2",
    "Gemma2ForCausalLM",
    keys=(
        *_KEYS,
        Number("attn_logit_softcapping", "attn_logit_softcapping"),
        Number("final_logit_softcapping", "final_logit_softcapping"),
        Windows(layers=lambda config, layer: _slides(layer), names=(), usual=_slides),
        _SCALE,
    ),
    defaults={
        "head_dim": 256,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "num_key_value_heads": 4,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "tie_word_embeddings": True,
    },
    requires={
        "hidden_activation": ("gelu_pytorch_tanh",),
        "use_bidirectional_attention": (None, False),
        "tie_word_embeddings": (True,),
    },
    biases={"attention_bias": ATTENTION},
)


def _norm(hf: str, gguf: str) -> Tensor:
    return in_layer(hf, gguf, values=PLUS_ONE)


_OUTER = (Tensor("model.embed_tokens", "token_embd"), Tensor("model.norm", "output_norm", values=PLUS_ONE))
ARCH = Arch(
    name="gemma",
    classes=(GEMMA,),
    tensors=(
        *_OUTER,
        _norm("input_layernorm", "attn_norm"),
        *ATTENTION_TENSORS,
        _norm("post_attention_layernorm", "ffn_norm"),
        *FEED_FORWARD,
    ),
    hparams=hyperparameters,
    build=Decoder(attention=Attention(pairs="halves"), feed_forward=Gated(geglu)),
)
ARCH2 = Arch(
    name="gemma2",
    classes=(GEMMA2,),
    tensors=(
        *_OUTER,
        _norm("input_layernorm", "attn_norm"),
        *ATTENTION_TENSORS,
        _norm("post_attention_layernorm", "post_attention_norm"),
        _norm("pre_feedforward_layernorm", "ffn_norm"),
        *FEED_FORWARD,
        _norm("post_feedforward_layernorm", "post_ffw_norm"),
    ),
    hparams=hyperparameters2,
    build=Decoder(
        attention=Attention(pairs="halves"),
        feed_forward=Gated(geglu),
        post_norms=("post_attention_norm", "post_ffw_norm"),
    ),
)
