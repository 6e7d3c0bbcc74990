"""The keys that most architectures have, in the order that llama.cpp's converter has (conversion/base.py)."""

from __future__ import annotations

from collections.abc import Iterable

from loragraft.archs.config import CONTEXT
from loragraft.archs.keys.rope import RopeParameters
from loragraft.archs.keys.rule import FILE_TYPE, Rule
from loragraft.archs.keys.values import Count, HeadDim, HiddenAct, KvHeads, Layers, Number
from loragraft.archs.keys.windows import Windows

WIDTH = ("hidden_size", "n_embd", "dim")
FEED_FORWARD = ("intermediate_size", "n_inner", "hidden_dim")
HEADS = ("num_attention_heads", "n_heads", "n_head")

RMS_EPSILON = "attention.layer_norm_rms_epsilon"
EPSILON = "attention.layer_norm_epsilon"

EXPERTS: tuple[Rule, ...] = (
    Count(
        "expert_count",
        ("num_local_experts", "num_experts", "n_routed_experts"),
        optional=True,
        also=("num_experts",),
    ),
    Count(
        "expert_used_count", ("num_experts_per_tok", "num_experts_per_token", "top_k_experts"), optional=True
    ),
)
GROUPS: tuple[Rule, ...] = (
    Count("expert_group_count", ("n_group",), optional=True),
    Count("expert_group_used_count", ("topk_group",), optional=True),
)


def usual_keys(
    *,
    norm: Rule,
    rope: Rule | None = None,
    experts: bool = False,
    groups: bool = False,
    head_dim: Rule | None = None,
    windows: Windows | None = None,
    activation: str | None = "silu",
    kv_heads: Rule = KvHeads(),  # noqa: B008 (it never changes)
    more: Iterable[Rule] = (),
) -> tuple[Rule, ...]:
    """Sizes, RoPE, the norms' epsilon, experts, head size, windows (which llama.cpp's converter leaves out for most),
    then `more`: what a family writes after the common keys. `activation`: what GGUF has as `hidden_act` without saying
    so; None: a rule or a requirement of its own is for that."""
    return (
        Layers(),
        Count("context_length", CONTEXT),
        Count("embedding_length", WIDTH),
        Count("feed_forward_length", FEED_FORWARD),
        Count("attention.head_count", HEADS),
        kv_heads,
        rope or RopeParameters(),
        norm,
        *(EXPERTS if experts else ()),
        *(GROUPS if groups else ()),
        head_dim or HeadDim(),
        *([windows] if windows else []),
        FILE_TYPE,
        *more,
        *([HiddenAct(activation)] if activation else []),
    )


def rms_norm(name: str = "rms_norm_eps") -> Rule:
    return Number(RMS_EPSILON, name)


def layer_norm(name: str) -> Rule:
    return Number(EPSILON, name)
