"""Granite (IBM): Llama with multipliers of its own for embedding, attention, residuals and logits; dense and MoE."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from loragraft.archs.arch import ATTENTION, FEED_FORWARD, ConfigClass
from loragraft.archs.blocks import Attention, Decoder, Gated, Routed, swiglu
from loragraft.archs.hparams import Hparams, read_decoder
from loragraft.archs.keys import Computed, Count, GgufModel, HeadDim, Number
from loragraft.archs.llama import PERMUTED_ATTENTION, llama_keys
from loragraft.archs.metadata import MetadataKeys
from loragraft.archs.tensors import NORMS, OUTER, Part, Tensor, in_layer
from loragraft.errors import UnsupportedError

MULTIPLIERS = (
    Number("attention.scale", "attention_multiplier"),
    Number("embedding_scale", "embedding_multiplier"),
    Number("residual_scale", "residual_multiplier"),
    Number("logit_scale", "logits_scaling"),
)
DEFAULTS = {
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 2048,
    "attention_multiplier": 1.0,
    "embedding_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "logits_scaling": 1.0,
}


def hyperparameters(keys: MetadataKeys) -> Hparams:
    """The logits are divided by `logit_scale`."""
    return replace(
        read_decoder(keys),
        attention_scale=keys.optional_number("attention.scale"),
        embedding_scale=keys.number("embedding_scale", 1.0),
        residual_scale=keys.number("residual_scale", 1.0),
        logit_scale=1.0 / (keys.optional_number("logit_scale") or 1.0),
    )


#: Of the network beside experts, which every token goes through.
SHARED_WIDTH = Count("expert_shared_feed_forward_length", ("shared_intermediate_size",))


def _granite_3(model: GgufModel) -> dict[str, Any]:
    """Nothing to say; raises UnsupportedError for Granite 4, whose class is another."""
    if model.keys.has("ssm.conv_kernel"):
        raise UnsupportedError(f"{model.h.arch}.ssm.conv_kernel", "Granite 3 has no Mamba layers")
    return {}


def _unshared(model: GgufModel) -> dict[str, Any]:
    if model.keys.has(SHARED_WIDTH.gguf):
        raise UnsupportedError(f"{model.h.arch}.{SHARED_WIDTH.gguf}", "GraniteMoe has no shared expert")
    return {}


_OLDER = Computed(frozenset(), lambda config: {}, _granite_3)
_ALONE = Computed(frozenset(), lambda config: {}, _unshared)


GRANITE = ConfigClass(
    "granite",
    "GraniteForCausalLM",
    keys=llama_keys(head_dim=HeadDim(), more=(*MULTIPLIERS, _OLDER)),
    defaults=DEFAULTS,
    biases={"attention_bias": ATTENTION, "mlp_bias": FEED_FORWARD},
    experts=False,
)
GRANITE_MOE = ConfigClass(
    "granitemoe",
    "GraniteMoeForCausalLM",
    keys=llama_keys(
        experts=True,
        head_dim=HeadDim(),
        more=(*MULTIPLIERS, _OLDER, _ALONE),
    ),
    defaults={**DEFAULTS, "num_local_experts": 8, "num_experts_per_tok": 2},
    biases={"attention_bias": ATTENTION},
    experts=True,
)
GRANITE_MOE_SHARED = ConfigClass(
    "granitemoeshared",
    "GraniteMoeSharedForCausalLM",
    keys=llama_keys(experts=True, head_dim=HeadDim(), more=(*MULTIPLIERS, SHARED_WIDTH, _OLDER)),
    defaults={
        **DEFAULTS,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 1024,
    },
    biases={"attention_bias": ATTENTION},
    experts=True,
)


def _stack(hf: str, gguf: str, part: Part | None = None) -> Tensor:
    name = f"model.layers.{{i}}.block_sparse_moe.{hf}.weight"
    return Tensor(name, f"blk.{{i}}.{gguf}.weight", part, exact=True)


EXPERT_STACKS = (
    in_layer("block_sparse_moe.router.layer", "ffn_gate_inp"),
    _stack("input_linear", "ffn_gate_exps", Part(0)),
    _stack("input_linear", "ffn_up_exps", Part(1)),
    _stack("output_linear", "ffn_down_exps"),
)
DECODER = Decoder(attention=Attention(pairs="adjacent"), feed_forward=Gated(swiglu))
MOE_DECODER = replace(DECODER, feed_forward=Routed(normalize=True))
TENSORS = (*OUTER, *NORMS, *PERMUTED_ATTENTION)
