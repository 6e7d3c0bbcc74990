"""StarCoder2: LayerNorm, GELU, a bias on every linear (Lozhkov et al. 2024, arXiv 2402.19173)."""

from __future__ import annotations

from collections.abc import Mapping

from loragraft.archs.base import LLAMA_MODULES, Arch
from loragraft.archs.blocks import Attention, decoder, gelu_mlp
from loragraft.archs.hparams import Hparams
from loragraft.graph.build import GraphBuilder
from loragraft.graph.ops import Graph, TensorFact

# ---- from Hugging Face ----

ARCH = Arch(
    name="starcoder2",
    model_types=("starcoder2",),
    hf_class="Starcoder2ForCausalLM",
    modules=LLAMA_MODULES - {"gate_proj", "up_proj", "down_proj"} | {"c_fc", "c_proj"},
    defaults={
        "norm_epsilon": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 4096,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    requires={"hidden_act": ("gelu_pytorch_tanh",), "use_bias": (True,)},
    ignores={"sliding_window": ()},
)


# ---- the graph ----


def build(h: Hparams, tensors: Mapping[str, TensorFact]) -> Graph:
    """LayerNorm, RoPE on halves, GELU."""
    return decoder(
        GraphBuilder(h.arch, tensors),
        h,
        norm=GraphBuilder.layer_norm,
        attention=Attention(pairs="halves"),
        feed_forward=gelu_mlp,
    )
