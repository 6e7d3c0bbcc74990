"""StableLM: LayerNorm, SwiGLU, RoPE on a part of each head, biases of q, k and v by flag."""

from __future__ import annotations

from loragraft.archs.arch import QKV, Arch, ConfigClass
from loragraft.archs.blocks import Attention, Decoder, Gated, layer_norm, swiglu
from loragraft.archs.config import CONTEXT
from loragraft.archs.keys import FILE_TYPE, Count, Flag, HiddenAct, KvHeads, Layers, PlainRope, RotaryPart
from loragraft.archs.keys.usual import EPSILON, FEED_FORWARD, HEADS, WIDTH
from loragraft.archs.keys.values import Number
from loragraft.archs.tensors import ATTENTION as ATTENTION_TENSORS
from loragraft.archs.tensors import FEED_FORWARD as FEED_FORWARD_TENSORS
from loragraft.archs.tensors import NORMS, OUTER

STABLELM = ConfigClass(
    "stablelm",
    "StableLmForCausalLM",
    keys=(
        Count("context_length", CONTEXT),
        Count("embedding_length", WIDTH),
        Layers(),
        Count("feed_forward_length", FEED_FORWARD),
        RotaryPart(),
        Count("attention.head_count", HEADS),
        KvHeads(),
        Flag("use_parallel_residual", "use_parallel_residual"),
        Number(EPSILON, "layer_norm_eps"),
        PlainRope(partial=True),
        FILE_TYPE,
        HiddenAct(),
    ),
    defaults={
        "layer_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 4096,
        "partial_rotary_factor": 0.25,
        "use_parallel_residual": False,
    },
    requires={"qk_layernorm": (False,), "use_parallel_residual": (False,)},
    biases={"use_qkv_bias": QKV},
)
ARCH = Arch(
    name="stablelm",
    classes=(STABLELM,),
    tensors=(*OUTER, *NORMS, *ATTENTION_TENSORS, *FEED_FORWARD_TENSORS),
    build=Decoder(attention=Attention(pairs="halves"), feed_forward=Gated(swiglu), norm=layer_norm),
    fixed={"use_parallel_residual": False},
)
