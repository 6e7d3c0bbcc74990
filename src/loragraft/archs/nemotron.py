"""Nemotron (Minitron, arXiv 2407.14679): LayerNorm stored less 1, squared ReLU, RoPE on a part of each head."""

from __future__ import annotations

from loragraft.archs.arch import ATTENTION, Arch, ConfigClass
from loragraft.archs.blocks import Attention, Decoder, Plain, layer_norm, squared_relu
from loragraft.archs.config import Config
from loragraft.archs.keys import Computed, Count, HeadDim, RopeParameters, RotaryPart, usual
from loragraft.archs.tensors import ATTENTION as ATTENTION_TENSORS
from loragraft.archs.tensors import PLUS_ONE, Tensor, in_layer
from loragraft.formats.gguf.values import Metadata, Value


def _rms_epsilon(config: Config) -> Metadata:
    """Nothing reads it: llama.cpp's converter takes norm_eps for either."""
    return {usual.RMS_EPSILON: Value.f32(config.number("norm_eps"))}


NEMOTRON = ConfigClass(
    "nemotron",
    "NemotronForCausalLM",
    keys=usual.usual_keys(
        activation="relu2",
        norm=Computed(frozenset(), _rms_epsilon),
        rope=RopeParameters(partial=True),
        head_dim=HeadDim(),
        more=(
            Count("vocab_size", ("vocab_size",)),
            usual.layer_norm("norm_eps"),
            RotaryPart(),
            Computed(frozenset(), lambda config: {"rope.scaling.type": Value.string("none")}),
        ),
    ),
    defaults={
        "norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 4096,
        "partial_rotary_factor": 0.5,
    },
    biases={"attention_bias": ATTENTION, "mlp_bias": frozenset(["ffn_up", "ffn_down"])},
)


def _norm(hf: str, gguf: str) -> tuple[Tensor, Tensor]:
    """The weight is stored less 1, the bias as it is."""
    return (
        Tensor(f"{hf}.weight", f"{gguf}.weight", values=PLUS_ONE, exact=True),
        Tensor(f"{hf}.bias", f"{gguf}.bias", exact=True),
    )


ARCH = Arch(
    name="nemotron",
    classes=(NEMOTRON,),
    tensors=(
        Tensor("model.embed_tokens", "token_embd"),
        *_norm("model.norm", "output_norm"),
        Tensor("lm_head", "output"),
        *_norm("model.layers.{i}.input_layernorm", "blk.{i}.attn_norm"),
        *_norm("model.layers.{i}.post_attention_layernorm", "blk.{i}.ffn_norm"),
        *ATTENTION_TENSORS,
        in_layer("mlp.up_proj", "ffn_up"),
        in_layer("mlp.down_proj", "ffn_down"),
    ),
    build=Decoder(attention=Attention(pairs="halves"), feed_forward=Plain(squared_relu), norm=layer_norm),
)
