"""Arcee (AFM): Llama with a plain feed-forward network and the square of ReLU."""

from __future__ import annotations

from loragraft.archs.arch import ATTENTION, Arch, ConfigClass
from loragraft.archs.blocks import Attention, Decoder, Plain, squared_relu
from loragraft.archs.llama import PERMUTED_ATTENTION, llama_keys
from loragraft.archs.tensors import NORMS, OUTER, in_layer

ARCEE = ConfigClass(
    "arcee",
    "ArceeForCausalLM",
    keys=llama_keys(activation="relu2"),
    defaults={"rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 4096},
    biases={"attention_bias": ATTENTION, "mlp_bias": frozenset(["ffn_up", "ffn_down"])},
    experts=False,
)
ARCH = Arch(
    name="arcee",
    classes=(ARCEE,),
    tensors=(
        *OUTER,
        *NORMS,
        *PERMUTED_ATTENTION,
        in_layer("mlp.up_proj", "ffn_up"),
        in_layer("mlp.down_proj", "ffn_down"),
    ),
    build=Decoder(attention=Attention(pairs="adjacent"), feed_forward=Plain(squared_relu)),
)
