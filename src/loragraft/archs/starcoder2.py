"""StarCoder2: LayerNorm, GELU, a bias on every linear (Lozhkov et al. 2024, arXiv 2402.19173)."""

from __future__ import annotations

from loragraft.archs.base import ATTENTION, FEED_FORWARD, LLAMA_MODULES, Arch, ModelType
from loragraft.archs.blocks import Attention, Decoder, gelu_mlp
from loragraft.archs.windows import EVERY_LAYER
from loragraft.graph.build import GraphBuilder

# ---- from Hugging Face ----

STARCODER2 = ModelType(
    "starcoder2",
    "Starcoder2ForCausalLM",
    defaults={
        "norm_epsilon": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 4096,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
        "use_bias": True,
    },
    requires={"hidden_act": ("gelu_pytorch_tanh",), "use_bias": (True,)},
    biases={"use_bias": ATTENTION | FEED_FORWARD},
    windows=EVERY_LAYER,
)
ARCH = Arch(
    name="starcoder2",
    model_types=(STARCODER2,),
    modules=LLAMA_MODULES - {"gate_proj", "up_proj", "down_proj"} | {"c_fc", "c_proj"},
)

# ---- the graph: LayerNorm, RoPE on halves, GELU ----

build = Decoder(attention=Attention(pairs="halves"), feed_forward=gelu_mlp, norm=GraphBuilder.layer_norm)
