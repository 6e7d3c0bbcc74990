"""ERNIE 4.5 (Baidu), dense: Llama with RoPE on neighbours as the checkpoint has them."""

from __future__ import annotations

from loragraft.archs.arch import ATTENTION, FEED_FORWARD, Arch, ConfigClass
from loragraft.archs.blocks import Attention, Decoder, Gated, swiglu
from loragraft.archs.keys import usual
from loragraft.archs.tensors import ATTENTION as ATTENTION_TENSORS
from loragraft.archs.tensors import FEED_FORWARD as FEED_FORWARD_TENSORS
from loragraft.archs.tensors import NORMS, OUTER

ERNIE4_5 = ConfigClass(
    "ernie4_5",
    "Ernie4_5ForCausalLM",
    keys=usual.usual_keys(norm=usual.rms_norm()),
    defaults={
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "tie_word_embeddings": True,
    },
    biases={"use_bias": ATTENTION | FEED_FORWARD},
)
ARCH = Arch(
    name="ernie4_5",
    classes=(ERNIE4_5,),
    tensors=(*OUTER, *NORMS, *ATTENTION_TENSORS, *FEED_FORWARD_TENSORS),
    build=Decoder(attention=Attention(pairs="adjacent"), feed_forward=Gated(swiglu)),
)
