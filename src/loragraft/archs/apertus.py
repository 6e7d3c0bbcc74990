"""Apertus (Swiss AI, arXiv 2509.14233): Llama with QK norm and xIELU in place of a gated feed-forward network, whose
parameters are keys of GGUF, not tensors."""

from __future__ import annotations

from dataclasses import replace
from math import exp, log1p

from loragraft.archs.arch import ATTENTION, Arch, ConfigClass
from loragraft.archs.blocks import Attention, Decoder, rms_norm
from loragraft.archs.hparams import Hparams, read_decoder
from loragraft.archs.keys import HeadDim, RopeParameters
from loragraft.archs.llama import llama_keys
from loragraft.archs.metadata import MetadataKeys
from loragraft.archs.tensors import ATTENTION as ATTENTION_TENSORS
from loragraft.archs.tensors import HEAD_NORMS, OUTER, in_layer
from loragraft.graph.build import GraphBuilder, Ref
from loragraft.graph.ops import Op

_PARAMETERS = ("alpha_n", "alpha_p", "beta", "eps")


APERTUS = ConfigClass(
    "apertus",
    "ApertusForCausalLM",
    keys=llama_keys(activation=None, head_dim=HeadDim(), rope=RopeParameters(llama3=True, explicit=True)),
    defaults={
        "rms_norm_eps": 1e-5,
        "rope_theta": 12000000.0,
        "max_position_embeddings": 65536,
        "rope_parameters": {
            "rope_type": "llama3",
            "factor": 8.0,
            "original_max_position_embeddings": 8192,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
        },
    },
    requires={"hidden_act": ("xielu",)},
    biases={"attention_bias": ATTENTION},
)


def _softplus(x: float) -> float:
    return max(x, 0.0) + log1p(exp(-abs(x)))


def hyperparameters(keys: MetadataKeys) -> Hparams:
    h = read_decoder(keys)
    values = {name: keys.global_numbers(f"xielu.{name}", len(h.layers)) for name in _PARAMETERS}
    return replace(h, extra=values)


def feed_forward(g: GraphBuilder, h: Hparams, x: Ref, layer: int) -> Ref:
    """alpha_p and alpha_n are stored as what softplus makes them of."""
    blk, own = f"blk.{layer}", {name: h.extra[name][layer] for name in _PARAMETERS}
    active = g.add(
        Op.XIELU,
        (g.linear(x, f"{blk}.ffn_up"),),
        label=f"{blk}.ffn_act",
        alpha_p=_softplus(own["alpha_p"]),
        alpha_n=own["beta"] + _softplus(own["alpha_n"]),
        beta=own["beta"],
        eps=own["eps"],
    )
    return g.linear(active, f"{blk}.ffn_down")


ARCH = Arch(
    name="apertus",
    classes=(APERTUS,),
    tensors=(
        *OUTER,
        in_layer("attention_layernorm", "attn_norm"),
        *ATTENTION_TENSORS,
        *HEAD_NORMS,
        in_layer("feedforward_layernorm", "ffn_norm"),
        in_layer("mlp.up_proj", "ffn_up"),
        in_layer("mlp.down_proj", "ffn_down"),
    ),
    scalars={
        f"mlp.act_fn.{name}": (f"xielu.{name}", (1,) if name.startswith("alpha") else ())
        for name in _PARAMETERS
    },
    hparams=hyperparameters,
    build=Decoder(attention=Attention(pairs="halves", head_norm=rms_norm), feed_forward=feed_forward),
)
