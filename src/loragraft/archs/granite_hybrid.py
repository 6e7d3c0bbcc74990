"""Granite 4 (IBM): Mamba-2 beside a few layers of attention, mostly without RoPE, with Granite's multipliers; experts
beside a shared one, or the shared one alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from loragraft.archs import bamba, granite
from loragraft.archs.arch import ATTENTION, Arch, ConfigClass
from loragraft.archs.blocks import (
    Attention,
    Decoder,
    Gated,
    Mamba2,
    Routed,
    by_mixer,
    routed_if_there,
    swiglu,
)
from loragraft.archs.config import CONTEXT, Config
from loragraft.archs.hparams import Hparams, Layer
from loragraft.archs.keys import Computed, Count, GgufModel, HeadDim, Rule
from loragraft.archs.llama import PERMUTED_ATTENTION, llama_keys
from loragraft.archs.mamba_layers import CONV_BIAS, LONGEST, MAMBA_KEYS, UNBOUNDED, mamba_tensors
from loragraft.archs.metadata import MetadataKeys
from loragraft.archs.recurrence import KvHeadsByKind, read_recurrence
from loragraft.archs.tensors import NORMS, OUTER, Part, Tensor, in_layer
from loragraft.formats.gguf.values import Metadata, Value

MAMBA, ATTENDS = "mamba", "attention"


def _turns(config: Config) -> bool:
    return bool(config.get("position_embedding_type") == "rope")


def _context(config: Config) -> Metadata:
    return {"context_length": Value.u32(config.context if _turns(config) else LONGEST)}


def _rope(config: Config) -> Metadata:
    return {"rope.scaling.finetuned": Value.boolean(_turns(config))}


def _rope_back(model: GgufModel) -> dict[str, Any]:
    turns = model.keys.flag("rope.scaling.finetuned", True)
    return {"position_embedding_type": "rope" if turns else None}


_OTHERS: dict[str, Rule] = {
    "max_position_embeddings": Computed(
        frozenset(CONTEXT),
        _context,
        lambda model: {"max_position_embeddings": model.h.context},
    ),
    "num_key_value_heads": KvHeadsByKind(MAMBA, ATTENDS, usual=lambda config, layer: MAMBA),
}


def _in_place(rule: Rule) -> Rule:
    return next((own for key, own in _OTHERS.items() if key in rule.config_keys), rule)


def hyperparameters(keys: MetadataKeys) -> Hparams:
    """Without `rope.scaling.finetuned`, nothing turns. Layers without key-value heads are Mamba's."""
    h, turns = granite.hyperparameters(keys), keys.flag("rope.scaling.finetuned", True)
    keys.cover("expert_shared_feed_forward_length")

    def layer(_: int, own: Layer) -> Layer:
        if not own.kv_heads:
            return replace(own, mixer=MAMBA)
        return own if turns else replace(own, rope=None)

    multiplied = any(keys.has(rule.gguf) for rule in granite.MULTIPLIERS)
    return replace(
        h.with_layers(layer),
        recurrence=read_recurrence(keys),
        extra={bamba.IS_BAMBA: turns and not multiplied and not h.experts},
    )


def attends_only(values: Mapping[str, Any]) -> bool:
    """Whether no layer is Mamba's: llama.cpp has the architecture of an older Granite for these."""
    kinds = values.get("layer_types") or values.get("layers_block_type")
    return isinstance(kinds, list) and bool(kinds) and {*map(str, kinds)} <= {ATTENDS, "full_attention"}


GRANITE_HYBRID = ConfigClass(
    "granitemoehybrid",
    "GraniteMoeHybridForCausalLM",
    keys=tuple(
        _in_place(rule)
        for rule in llama_keys(
            experts=True,
            head_dim=HeadDim(),
            more=(
                *granite.MULTIPLIERS,
                Count("expert_shared_feed_forward_length", ("shared_intermediate_size",)),
                *MAMBA_KEYS,
                Computed(frozenset(["position_embedding_type"]), _rope, _rope_back),
                CONV_BIAS,
            ),
        )
    ),
    defaults={
        **granite.DEFAULTS,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 1024,
        "intermediate_size": 11008,
        "mamba_n_heads": 128,
        "mamba_n_groups": 1,
        "mamba_d_state": 256,
        "mamba_d_conv": 4,
        "mamba_expand": 2,
        "mamba_conv_bias": True,
        "time_step_limit": UNBOUNDED[0],
    },
    requires={"hidden_act": ("silu",), "time_step_limit": UNBOUNDED},
    biases={
        "attention_bias": ATTENTION,
        "mamba_proj_bias": frozenset(["ssm_in", "ssm_out"]),
    },
    ignores=frozenset(["mamba_chunk_size", "layers_block_type"]),
    when=lambda values: not attends_only(values),
)


def shared(suffix: str, experts: bool) -> tuple[Tensor, ...]:
    """The network that every token goes through: beside experts, or alone."""
    rows = (
        ("input_linear", "ffn_gate", Part(0)),
        ("input_linear", "ffn_up", Part(1)),
        ("output_linear", "ffn_down", None),
    )
    return tuple(
        replace(in_layer(f"shared_mlp.{hf}", gguf + suffix, part), when=lambda h: (h.experts > 0) is experts)
        for hf, gguf, part in rows
    )


ARCH = Arch(
    name="granitehybrid",
    classes=(bamba.BAMBA, GRANITE_HYBRID),
    tensors=(
        *bamba.TENSORS,
        *OUTER,
        *NORMS,
        *PERMUTED_ATTENTION,
        *granite.EXPERT_STACKS,
        *mamba_tensors("mamba"),
        *shared("_shexp", experts=True),
        *(
            replace(one, when=lambda h: not h.experts and not bamba.is_bamba(h))
            for one in shared("", experts=False)
        ),
    ),
    hparams=hyperparameters,
    build=Decoder(
        attention=by_mixer(attention=Attention(pairs="adjacent"), mamba=Mamba2()),
        feed_forward=routed_if_there(Gated(swiglu), Routed(normalize=True)),
    ),
)
