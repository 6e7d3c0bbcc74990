"""BitNet b1.58 (Microsoft, arXiv 2504.12285): Llama with weights of three levels, the square of ReLU, and a norm more
before the output of attention and before that of the feed-forward network (arXiv 2310.11453).

Which weights are rounded, and how, is the checkpoint's (`huggingface/bitnet_weights.py`). Activations stay as they are:
docs/decisions/0010-bitnet-activations.md.
"""

from __future__ import annotations

from loragraft.archs.arch import ATTENTION, Arch, ConfigClass
from loragraft.archs.blocks import Attention, Decoder, Gated, rms_norm, swiglu
from loragraft.archs.config import Config
from loragraft.archs.keys import Computed, HiddenAct, usual_keys
from loragraft.archs.keys.usual import rms_norm as rms_epsilon
from loragraft.archs.tensors import ATTENTION as ATTENTION_TENSORS
from loragraft.archs.tensors import FEED_FORWARD, NORMS, OUTER, in_layer
from loragraft.formats.gguf.values import Metadata, Value


def _unscaled(config: Config) -> Metadata:
    """What the converter writes, whatever RoPE does; left out where it is scaled."""
    if config.rope["rope_type"] != "default":
        return {}
    return {"rope.scaling.type": Value.string("linear"), "rope.scaling.factor": Value.f32(1.0)}


BITNET = ConfigClass(
    "bitnet",
    "BitNetForCausalLM",
    keys=usual_keys(
        norm=rms_epsilon(), activation=None, more=(Computed(frozenset(), _unscaled), HiddenAct("silu"))
    ),
    defaults={
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "max_position_embeddings": 2048,
        "num_key_value_heads": 5,
        "hidden_act": "relu2",
    },
    biases={"attention_bias": ATTENTION},
    experts=False,
)
ARCH = Arch(
    name="bitnet",
    classes=(BITNET,),
    tensors=(
        *OUTER,
        *NORMS,
        *ATTENTION_TENSORS,
        in_layer("self_attn.attn_sub_norm", "attn_sub_norm"),
        *FEED_FORWARD,
        in_layer("mlp.ffn_sub_norm", "ffn_sub_norm"),
        # of 1bitLLM's checkpoints, the only ones that llama.cpp's converter reads
        in_layer("self_attn.inner_attn_ln", "attn_sub_norm"),
        in_layer("mlp.ffn_layernorm", "ffn_sub_norm"),
    ),
    # a file without `hidden_activation` is llama.cpp's, which has SiLU
    build=Decoder(
        attention=Attention(pairs="halves", sub_norm=rms_norm), feed_forward=Gated(swiglu, sub_norm=rms_norm)
    ),
)
