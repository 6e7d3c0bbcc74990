"""Phi 1 to 2 (Microsoft): attention and feed-forward side by side behind one LayerNorm, RoPE on a part of each head, a
bias on every linear."""

from __future__ import annotations

from loragraft.archs.arch import ATTENTION, Arch, ConfigClass
from loragraft.archs.blocks import Attention, Decoder, Plain, gelu, layer_norm
from loragraft.archs.config import CONTEXT
from loragraft.archs.keys import FILE_TYPE, Count, HiddenAct, KvHeads, Layers, Number, PlainRope, RotaryPart
from loragraft.archs.keys.usual import EPSILON, FEED_FORWARD, HEADS, WIDTH
from loragraft.archs.tensors import Tensor, in_layer

PHI = ConfigClass(
    "phi",
    "PhiForCausalLM",
    keys=(
        Count("context_length", CONTEXT),
        Count("embedding_length", WIDTH),
        Count("feed_forward_length", FEED_FORWARD),
        Layers(),
        Count("attention.head_count", HEADS),
        KvHeads(),
        Number(EPSILON, "layer_norm_eps"),
        RotaryPart(),
        PlainRope(partial=True),
        FILE_TYPE,
        HiddenAct("gelu_new"),
    ),
    defaults={
        "layer_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 2048,
        "partial_rotary_factor": 0.5,
    },
    requires={"qk_layernorm": (False,)},
    biases={"": ATTENTION | {"ffn_up", "ffn_down", "output"}},
)
ARCH = Arch(
    name="phi2",
    classes=(PHI,),
    tensors=(
        Tensor("model.embed_tokens", "token_embd"),
        Tensor("model.final_layernorm", "output_norm"),
        Tensor("lm_head", "output"),
        in_layer("input_layernorm", "attn_norm"),
        in_layer("self_attn.q_proj", "attn_q"),
        in_layer("self_attn.k_proj", "attn_k"),
        in_layer("self_attn.v_proj", "attn_v"),
        in_layer("self_attn.dense", "attn_output"),
        in_layer("mlp.fc1", "ffn_up"),
        in_layer("mlp.fc2", "ffn_down"),
    ),
    build=Decoder(
        attention=Attention(pairs="halves"),
        feed_forward=Plain(gelu),
        norm=layer_norm,
        pre_norms=("attn_norm", "attn_norm"),
        parallel=True,
    ),
)
