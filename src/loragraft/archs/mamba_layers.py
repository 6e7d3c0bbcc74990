"""Mamba-2 as checkpoints have it beside attention (Granite 4, Bamba), or in every layer: names of its tensors, and its
sizes in config.json."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from loragraft.archs.config import Config
from loragraft.archs.keys import Computed, Count, GgufModel, Rule
from loragraft.archs.tensors import COLUMN, GROUPED, LOG_DECAY, SQUEEZED, Tensor
from loragraft.formats.gguf.values import Metadata, Value

LONGEST = 2**20
"""What the converter calls the context of models without RoPE."""
UNBOUNDED = ([0.0, {"__float__": "Infinity"}], [0.0, math.inf])
"""What time steps are bounded by where they are not, as a file says it and as transformers takes it."""


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


#: Of layers beside attention, as the converter writes them.
MAMBA_KEYS: tuple[Rule, ...] = (
    Count("ssm.conv_kernel", ("mamba_d_conv",)),
    Count("ssm.state_size", ("mamba_d_state",)),
    Count("ssm.group_count", ("mamba_n_groups",)),
    Computed(frozenset(["mamba_n_heads", "mamba_d_head", "mamba_expand"]), _inner, _inner_back),
)
CONV_BIAS = Computed(frozenset(["mamba_conv_bias"]), lambda config: {}, _conv_back)


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
