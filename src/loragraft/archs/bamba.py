"""Bamba (IBM, Princeton, CMU and UIUC, 2024): Mamba-2 beside a few layers of attention, of which half of each head
turns, and a feed-forward network in every layer. In GGUF it is Granite 4's architecture without its multipliers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from loragraft.archs.arch import ATTENTION, FEED_FORWARD, ConfigClass
from loragraft.archs.config import Config
from loragraft.archs.hparams import Hparams
from loragraft.archs.keys import (
    Computed,
    Count,
    GgufModel,
    HeadDim,
    KvHeads,
    RopeParameters,
    usual,
)
from loragraft.archs.mamba_layers import CONV_BIAS, MAMBA_KEYS, UNBOUNDED
from loragraft.archs.tensors import FEED_FORWARD as FEED_FORWARD_TENSORS
from loragraft.archs.tensors import Tensor, in_layer
from loragraft.errors import CheckpointError, UnsupportedError
from loragraft.formats.gguf.values import Metadata, Value, ValueType

IS_BAMBA = "bamba"
"""In `Hparams.extra`: whether a GGUF is one."""
_ATTENDING = "attn_layer_indices"
_PART = "partial_rotary_factor"


@dataclass(frozen=True)
class AttendingLayers(KvHeads):
    """`attn_layer_indices`, and the key-value heads as one array: none in the other layers, which are Mamba's."""

    @property
    def config_keys(self) -> frozenset[str]:
        return super().config_keys | {_ATTENDING}

    def to_gguf(self, config: Config) -> Metadata:
        indices, layers = config.get(_ATTENDING) or [], range(config.n_layers)
        if not isinstance(indices, list) or not all(type(one) is int and one in layers for one in indices):
            raise CheckpointError(
                config.path,
                f"bad {_ATTENDING}",
                found=repr(indices)[:80],
                expected=f"a list of layers, from 0 to {len(layers) - 1}",
            )
        counts = [config.n_kv_heads if layer in indices else 0 for layer in layers]
        return {"attention.head_count_kv": Value.numbers(ValueType.INT32, counts)}

    def to_config(self, model: GgufModel) -> dict[str, Any]:
        counts = [layer.kv_heads for layer in model.h.layers]
        heads = max(counts) or model.h.layers[0].heads
        return {"num_key_value_heads": heads, _ATTENDING: [i for i, count in enumerate(counts) if count]}


@dataclass(frozen=True)
class PartlyTurned(RopeParameters):
    """Half of each head turns, unless the rope's own object says another part. transformers takes no notice of a
    `partial_rotary_factor` beside that object."""

    partial: bool = True

    def to_config(self, model: GgufModel) -> dict[str, Any]:
        found = super().to_config(model)
        head_dim = max(layer.key_dim for layer in model.h.layers)
        part = model.keys.count("rope.dimension_count", head_dim) / head_dim
        return {
            **found,
            "rope_scaling": {"rope_type": "default", **found.get("rope_scaling", {}), _PART: part},
        }


def _rotary(config: Config) -> Metadata:
    rope = config.get("rope_scaling", "rope_parameters") or {}
    part = Config(config.path, rope).optional_number(_PART) or 0.5
    return {"rope.dimension_count": Value.u32(int(config.head_dim * part))}


def _bamba(model: GgufModel) -> dict[str, Any]:
    """Nothing to say; raises UnsupportedError for Granite 4, whose class is another."""
    if not model.h.extra[IS_BAMBA]:
        raise UnsupportedError(f"{model.h.arch}.attention.scale", "Bamba has no multipliers and no experts")
    return {}


BAMBA = ConfigClass(
    "bamba",
    "BambaForCausalLM",
    keys=usual.usual_keys(
        norm=usual.rms_norm(),
        rope=PartlyTurned(),
        kv_heads=AttendingLayers(),
        head_dim=HeadDim(),
        activation=None,
        more=(
            Count("vocab_size", ("vocab_size",)),
            Computed(frozenset(), _rotary),
            *MAMBA_KEYS,
            Computed(frozenset(), lambda config: {"rope.scaling.finetuned": Value.boolean(True)}, _bamba),
            CONV_BIAS,
        ),
    ),
    defaults={
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "max_position_embeddings": 262144,
        "num_key_value_heads": 8,
        "mamba_n_heads": 128,
        "mamba_n_groups": 1,
        "mamba_d_state": 256,
        "mamba_d_conv": 4,
        "mamba_expand": 2,
        "time_step_limit": UNBOUNDED[0],
    },
    requires={"hidden_act": ("silu",), "time_step_limit": UNBOUNDED},
    biases={
        "attention_bias": ATTENTION,
        "mlp_bias": FEED_FORWARD,
        "mamba_proj_bias": frozenset(["ssm_in", "ssm_out"]),
    },
    ignores=frozenset(
        [
            "attn_rotary_emb",
            "layers_block_type",
            "mamba_chunk_size",
            "num_logits_to_keep",
            _PART,
            "z_loss_coefficient",
        ]
    ),
    experts=False,
)


def is_bamba(h: Hparams) -> bool:
    return bool(h.extra[IS_BAMBA])


#: Of its modules that have other names than Granite 4's.
TENSORS = tuple(
    replace(one, when=is_bamba)
    for one in (
        Tensor("model.final_layernorm", "output_norm"),
        in_layer("pre_ff_layernorm", "ffn_norm"),
        *(replace(one, hf=one.hf.replace(".mlp.", ".feed_forward.")) for one in FEED_FORWARD_TENSORS),
    )
)
