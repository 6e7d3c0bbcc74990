"""OLMo (AI2, arXiv 2402.00838): LayerNorm without weights; q, k and v may be kept within limits."""

from __future__ import annotations

from dataclasses import replace

from loragraft.archs.arch import Arch, ConfigClass
from loragraft.archs.blocks import Attention, Decoder, Gated, bare_layer_norm, swiglu
from loragraft.archs.hparams import Hparams, read_decoder
from loragraft.archs.keys import Computed, Number, usual
from loragraft.archs.llama import PERMUTED_ATTENTION
from loragraft.archs.metadata import MetadataKeys
from loragraft.archs.tensors import FEED_FORWARD, Tensor
from loragraft.formats.gguf.values import Value

OLMO = ConfigClass(
    "olmo",
    "OlmoForCausalLM",
    keys=usual.usual_keys(
        norm=Computed(frozenset(), lambda config: {}),
        more=(
            Computed(frozenset(), lambda config: {usual.EPSILON: Value.f32(1e-5)}),
            Number("attention.clamp_kqv", "clip_qkv"),
        ),
    ),
    defaults={"rope_theta": 10000.0, "max_position_embeddings": 2048},
    requires={"attention_bias": (False,)},
)


def hyperparameters(keys: MetadataKeys) -> Hparams:
    return replace(read_decoder(keys), clamp_qkv=keys.optional_number("attention.clamp_kqv"))


ARCH = Arch(
    name="olmo",
    classes=(OLMO,),
    tensors=(
        Tensor("model.embed_tokens", "token_embd"),
        Tensor("lm_head", "output"),
        *PERMUTED_ATTENTION,
        *FEED_FORWARD,
    ),
    hparams=hyperparameters,
    build=Decoder(attention=Attention(pairs="adjacent"), feed_forward=Gated(swiglu), norm=bare_layer_norm),
)
