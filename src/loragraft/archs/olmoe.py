"""OLMoE (arXiv 2409.02060): routed experts, QK norm across all heads."""

from __future__ import annotations

from dataclasses import replace

from loragraft.archs.arch import ATTENTION, Arch, ConfigClass
from loragraft.archs.blocks import Attention, Decoder, Routed, rms_norm
from loragraft.archs.hparams import Hparams, Routing, read_decoder
from loragraft.archs.keys import NormTopK, usual
from loragraft.archs.metadata import MetadataKeys
from loragraft.archs.tensors import ATTENTION as ATTENTION_TENSORS
from loragraft.archs.tensors import EXPERTS, HEAD_NORMS, NORMS, OUTER

OLMOE = ConfigClass(
    "olmoe",
    "OlmoeForCausalLM",
    keys=usual.usual_keys(norm=usual.rms_norm(), experts=True, more=(NormTopK(False),)),
    defaults={
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 4096,
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "norm_topk_prob": False,
    },
    requires={"clip_qkv": (None,)},
    biases={"attention_bias": ATTENTION},
    experts=True,
)


def hyperparameters(keys: MetadataKeys) -> Hparams:
    return replace(read_decoder(keys), routing=Routing("softmax", keys.flag("expert_weights_norm", False)))


ARCH = Arch(
    name="olmoe",
    classes=(OLMOE,),
    tensors=(*OUTER, *NORMS, *ATTENTION_TENSORS, *HEAD_NORMS, *EXPERTS),
    hparams=hyperparameters,
    build=Decoder(
        attention=Attention(pairs="halves", head_norm=rms_norm), feed_forward=Routed(normalize=False)
    ),
)
