"""GLM-4 (Zhipu, arXiv 2406.12793): RoPE on neighbours in one half of each head, gate and up in one tensor; the models
of 0414 with norms behind both parts, too."""

from __future__ import annotations

from loragraft.archs.arch import QKV, Arch, ConfigClass
from loragraft.archs.blocks import Attention, Decoder, Gated, swiglu
from loragraft.archs.config import CONTEXT
from loragraft.archs.hparams import Hparams, read_decoder
from loragraft.archs.keys import (
    FILE_TYPE,
    Count,
    HeadDim,
    HiddenAct,
    KvHeads,
    Layers,
    RopeParameters,
    RotaryPart,
    usual,
)
from loragraft.archs.keys.usual import FEED_FORWARD, HEADS, WIDTH
from loragraft.archs.metadata import MetadataKeys
from loragraft.archs.tensors import ATTENTION, NORMS, OUTER, in_layer
from loragraft.errors import UnsupportedError

_DEFAULTS = {
    "rms_norm_eps": 1.5625e-7,
    "rope_theta": 10000.0,
    "max_position_embeddings": 131072,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "partial_rotary_factor": 0.5,
}
_FUSED = (in_layer("mlp.gate_up_proj", "ffn_up"), in_layer("mlp.down_proj", "ffn_down"))

GLM = ConfigClass(
    "glm",
    "GlmForCausalLM",
    keys=(
        Count("context_length", CONTEXT),
        Count("embedding_length", WIDTH),
        Count("feed_forward_length", FEED_FORWARD),
        Layers(),
        Count("attention.head_count", HEADS),
        KvHeads(),
        usual.rms_norm(),
        HeadDim(unusual=True),
        FILE_TYPE,
        HiddenAct(),
        RotaryPart(),
        RopeParameters(partial=True),
    ),
    defaults=_DEFAULTS,
    biases={"attention_bias": QKV},
)
GLM4 = ConfigClass(
    "glm4",
    "Glm4ForCausalLM",
    keys=usual.usual_keys(norm=usual.rms_norm(), rope=RopeParameters(partial=True), more=(RotaryPart(),)),
    defaults=_DEFAULTS,
    biases={"attention_bias": QKV},
)


def hyperparameters(keys: MetadataKeys) -> Hparams:
    """Raises UnsupportedError for GLM-OCR, whose file has the rows of q and k in another order."""
    if keys.has("rope.dimension_sections"):
        raise UnsupportedError(f"{keys.arch}.rope.dimension_sections", "GLM-OCR's rows of q and k")
    return read_decoder(keys)


CHATGLM = Arch(
    name="chatglm",
    classes=(GLM,),
    tensors=(*OUTER, *NORMS, *ATTENTION, *_FUSED),
    build=Decoder(attention=Attention(pairs="adjacent"), feed_forward=Gated(swiglu)),
)
ARCH = Arch(
    name="glm4",
    classes=(GLM4,),
    tensors=(
        *OUTER,
        in_layer("input_layernorm", "attn_norm"),
        *ATTENTION,
        in_layer("post_self_attn_layernorm", "post_attention_norm"),
        in_layer("post_attention_layernorm", "ffn_norm"),
        *_FUSED,
        in_layer("post_mlp_layernorm", "post_ffw_norm"),
    ),
    hparams=hyperparameters,
    build=Decoder(
        attention=Attention(pairs="adjacent"),
        feed_forward=Gated(swiglu),
        post_norms=("post_attention_norm", "post_ffw_norm"),
    ),
)
