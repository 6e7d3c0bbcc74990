"""Granite 4 (IBM): Mamba-2 beside a few layers of attention, mostly without RoPE, with Granite's multipliers; experts
beside a shared one, or the shared one alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from loragraft.archs import granite
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
from loragraft.archs.metadata import MetadataKeys
from loragraft.archs.recurrence import KvHeadsByKind, read_recurrence
from loragraft.archs.tensors import (
    COLUMN,
    GROUPED,
    LOG_DECAY,
    NORMS,
    OUTER,
    SQUEEZED,
    Part,
    Tensor,
    in_layer,
)
from loragraft.formats.gguf.values import Metadata, Value

MAMBA, ATTENDS = "mamba", "attention"
LONGEST = 2**20
"""What the converter calls the context of models without RoPE."""
UNBOUNDED = ([0.0, {"__float__": "Infinity"}], [0.0, math.inf])
"""What time steps are bounded by where they are not, as a file says it and as transformers takes it."""


def _turns(config: Config) -> bool:
    return bool(config.get("position_embedding_type") == "rope")


def _context(config: Config) -> Metadata:
    return {"context_length": Value.u32(config.context if _turns(config) else LONGEST)}


def _rope(config: Config) -> Metadata:
    return {"rope.scaling.finetuned": Value.boolean(_turns(config))}


def _rope_back(model: GgufModel) -> dict[str, Any]:
    turns = model.keys.flag("rope.scaling.finetuned", True)
    return {"position_embedding_type": "rope" if turns else None}


def _inner(config: Config) -> Metadata:
    heads, width = config.integer("mamba_n_heads"), config.integer("mamba_expand") * config.hidden_size
    return {"ssm.inner_size": Value.u32(width), "ssm.time_step_rank": Value.u32(heads)}


def _inner_back(model: GgufModel) -> dict[str, Any]:
    """Written of models without Mamba layers too: transformers checks that the sizes divide."""
    if not model.keys.has("ssm.time_step_rank"):
        return {}
    heads, inner = model.keys.count("ssm.time_step_rank"), model.keys.count("ssm.inner_size")
    return {
        "mamba_n_heads": heads,
        "mamba_d_head": inner // heads,
        "mamba_expand": inner // model.h.width,
    }


def _conv_back(model: GgufModel) -> dict[str, Any]:
    return {"mamba_conv_bias": any(name.endswith(".ssm_conv1d.bias") for name in model.shapes)}


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

    return replace(h.with_layers(layer), recurrence=read_recurrence(keys))


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
                Count("ssm.conv_kernel", ("mamba_d_conv",)),
                Count("ssm.state_size", ("mamba_d_state",)),
                Count("ssm.group_count", ("mamba_n_groups",)),
                Computed(frozenset(["mamba_n_heads", "mamba_d_head", "mamba_expand"]), _inner, _inner_back),
                Computed(frozenset(["position_embedding_type"]), _rope, _rope_back),
                Computed(frozenset(["mamba_conv_bias"]), lambda config: {}, _conv_back),
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


def mamba_tensors(module: str, root: str = "model") -> tuple[Tensor, ...]:
    """Of Mamba-2 in a layer's `module`."""

    def plain(hf: str, gguf: str) -> Tensor:
        return Tensor(f"{root}.layers.{{i}}.{module}.{hf}", f"blk.{{i}}.{gguf}")

    def exact(hf: str, gguf: str) -> Tensor:
        return replace(plain(hf, gguf), exact=True)

    return (
        replace(exact("A_log", "ssm_a"), values=LOG_DECAY, shape=COLUMN),
        replace(exact("D", "ssm_d"), shape=COLUMN),
        exact("dt_bias", "ssm_dt.bias"),
        replace(plain("conv1d", "ssm_conv1d"), shape=SQUEEZED),
        plain("in_proj", "ssm_in"),
        replace(plain("norm", "ssm_norm"), shape=GROUPED),
        plain("out_proj", "ssm_out"),
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
    classes=(GRANITE_HYBRID,),
    tensors=(
        *OUTER,
        *NORMS,
        *PERMUTED_ATTENTION,
        *granite.EXPERT_STACKS,
        *mamba_tensors("mamba"),
        *shared("_shexp", experts=True),
        *shared("", experts=False),
    ),
    hparams=hyperparameters,
    build=Decoder(
        attention=by_mixer(attention=Attention(pairs="adjacent"), mamba=Mamba2()),
        feed_forward=routed_if_there(Gated(swiglu), Routed(normalize=True)),
    ),
)
