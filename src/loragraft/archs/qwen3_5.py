"""Qwen3.5, dense and with experts: Qwen3-Next with projections of their own, and a RoPE that on text is the plain one.
GGUF has the value heads of a delta net in another order: those with the same key `key_heads` apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from loragraft.archs.arch import ATTENTION, Arch, ConfigClass
from loragraft.archs.blocks import Gated, Routed, swiglu
from loragraft.archs.config import Config
from loragraft.archs.hparams import Hparams, Recurrence
from loragraft.archs.keys import Computed, Count, GgufModel, Rule, usual
from loragraft.archs.metadata import MetadataKeys
from loragraft.archs.qwen3_next import (
    DELTA_DEFAULTS,
    DELTA_KEYS,
    EXPERT_KEYS,
    delta_decoder,
    delta_tensors,
    hyperparameters,
    is_predictor,
)
from loragraft.archs.qwen_vl import SECTIONS, SectionedRope
from loragraft.archs.tensors import Order, Reordered, in_layer
from loragraft.formats.gguf.values import Metadata, Value, ValueType

_USUAL = [11, 11, 10, 0]


@dataclass(frozen=True)
class _Rope(SectionedRope):
    """The sections have a usual value, which is written behind all else."""

    def to_gguf(self, config: Config) -> Metadata:
        if config.rope.get("mrope_section") is None:
            return super(SectionedRope, self).to_gguf(config)
        return super().to_gguf(config)

    def to_config(self, model: GgufModel) -> dict[str, Any]:
        found = super(SectionedRope, self).to_config(model)
        data = model.keys.get(SECTIONS)
        sections = data.tolist() if isinstance(data, np.ndarray) else _USUAL
        scaling = found.pop("rope_scaling", {"rope_type": "default"})
        return {**found, "rope_scaling": {**scaling, "mrope_section": sections[:3]}}


def _usual_sections(config: Config) -> Metadata:
    if config.rope.get("mrope_section") is not None:
        return {}
    return {SECTIONS: Value.numbers(ValueType.INT32, _USUAL)}


def _value_heads(behind: Callable[[Recurrence], tuple[int, int]]) -> Reordered:
    """The order of value heads; `behind(sizes)`: how many rows stand before them, and how many are a head's."""

    def find(h: Hparams, layer: int, rows: int) -> Order:
        sizes = h.recurrence
        assert sizes is not None
        first, each = behind(sizes)
        if rows != first + sizes.heads * each:
            raise ValueError(f"{rows} rows are not those of {sizes.heads} value heads")
        heads = np.arange(first, rows).reshape(sizes.key_heads, -1, each).swapaxes(0, 1)
        return np.concatenate([np.arange(first), heads.reshape(-1)])

    return Reordered(find)


_BY_HEAD = _value_heads(lambda sizes: (0, 1))
_VALUES = _value_heads(lambda sizes: (0, sizes.value_dim))
_Q_K_VALUES = _value_heads(lambda sizes: (2 * sizes.key_heads * sizes.key_dim, sizes.value_dim))


def _keys(experts: bool) -> tuple[Rule, ...]:
    keys = usual.usual_keys(
        norm=usual.rms_norm(),
        rope=_Rope(partial=True),
        experts=experts,
        more=(*(EXPERT_KEYS if experts else ()), *DELTA_KEYS, Computed(frozenset(), _usual_sections)),
    )
    width = Count("feed_forward_length", usual.FEED_FORWARD, optional=experts)
    return tuple(width if "intermediate_size" in rule.config_keys else rule for rule in keys)


def _hyperparameters(keys: MetadataKeys) -> Hparams:
    keys.cover(SECTIONS)
    return hyperparameters(keys)


QWEN3_5 = ConfigClass(
    "qwen3_5_text",
    "Qwen3_5ForCausalLM",
    keys=_keys(experts=False),
    defaults={**DELTA_DEFAULTS, "num_key_value_heads": 4},
    requires={"hidden_act": ("silu",)},
    biases={"attention_bias": ATTENTION},
    ignores=frozenset(["mtp_num_hidden_layers", "mtp_use_dedicated_embeddings"]),
    experts=False,
    left_out=is_predictor,
)
_TENSORS = delta_tensors(
    (
        in_layer("linear_attn.in_proj_qkv", "attn_qkv", _Q_K_VALUES),
        in_layer("linear_attn.in_proj_z", "attn_gate", _VALUES),
        in_layer("linear_attn.in_proj_b", "ssm_beta", _BY_HEAD),
        in_layer("linear_attn.in_proj_a", "ssm_alpha", _BY_HEAD),
        replace(in_layer("linear_attn.out_proj", "ssm_out"), columns=_VALUES),
    ),
    _BY_HEAD,
    _Q_K_VALUES,
)
ARCH = Arch(
    name="qwen35",
    classes=(QWEN3_5,),
    tensors=_TENSORS,
    hparams=_hyperparameters,
    build=delta_decoder(tiled=True, feed_forward=Gated(swiglu)),
)
MOE = Arch(
    name="qwen35moe",
    classes=(
        replace(
            QWEN3_5,
            model_type="qwen3_5_moe_text",
            hf_class="Qwen3_5MoeForCausalLM",
            keys=_keys(experts=True),
            defaults={
                **DELTA_DEFAULTS,
                "num_key_value_heads": 2,
                "num_experts": 256,
                "num_experts_per_tok": 8,
                "moe_intermediate_size": 512,
                "shared_expert_intermediate_size": 512,
            },
            experts=True,
        ),
    ),
    tensors=_TENSORS,
    hparams=_hyperparameters,
    build=delta_decoder(tiled=True, feed_forward=Routed(normalize=True)),
)
