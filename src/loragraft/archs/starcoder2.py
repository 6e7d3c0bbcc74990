"""StarCoder2: LayerNorm, GELU, a bias on every linear (Lozhkov et al. 2024, arXiv 2402.19173)."""

from __future__ import annotations

from loragraft.archs.arch import ATTENTION, FEED_FORWARD, Arch, ConfigClass
from loragraft.archs.blocks import Attention, Decoder, Plain, gelu, layer_norm
from loragraft.archs.keys import usual
from loragraft.archs.keys.windows import EVERY_LAYER
from loragraft.archs.tensors import ATTENTION as ATTENTION_TENSORS
from loragraft.archs.tensors import NORMS, OUTER, in_layer
from loragraft.graph.llama_cpp import PublishedArch, drops_ffn_scales

STARCODER2 = ConfigClass(
    "starcoder2",
    "Starcoder2ForCausalLM",
    keys=usual.usual_keys(
        norm=usual.layer_norm("norm_epsilon"), windows=EVERY_LAYER, activation="gelu_pytorch_tanh"
    ),
    defaults={
        "norm_epsilon": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 4096,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
        "use_bias": True,
    },
    biases={"use_bias": ATTENTION | FEED_FORWARD},
)
ARCH = Arch(
    name="starcoder2",
    classes=(STARCODER2,),
    tensors=(
        *OUTER,
        *NORMS,
        *ATTENTION_TENSORS,
        in_layer("mlp.c_fc", "ffn_up"),
        in_layer("mlp.c_proj", "ffn_down"),
    ),
    llama_cpp=PublishedArch(
        frozenset(["attn_output", "ffn_up", "ffn_down"]), drops_ffn_scales("models/starcoder2.cpp:126-129")
    ),
    build=Decoder(attention=Attention(pairs="halves"), feed_forward=Plain(gelu), norm=layer_norm),
)
