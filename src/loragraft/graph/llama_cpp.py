"""What llama.cpp's published graph does with a linear's scale, adapter and bias: facts, as a table of rules.

Source: llama.cpp at `COMMIT`; every rule names its lines. `loragraft check` reports them beside
what loragraft does, which is the same for every linear: GEMM, weight scale, LoRA, bias.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

COMMIT = "0c1e57098 (2026-10-01)"


class Outcome(StrEnum):
    RIGHT = "right"
    ABORTS = "aborts"
    DROPS = "drops the scale"
    MISORDERS = "wrong order"
    REFUSES = "does not load"


_DENSE_FFN = frozenset(["ffn_gate", "ffn_up", "ffn_down"])
_SHARED = frozenset(["ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp"])
_EXPERTS = frozenset(["ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"])
_ATTENTION_IN = frozenset(["attn_q", "attn_k", "attn_v", "attn_qkv"])


@dataclass(frozen=True, slots=True)
class Unscaled:
    """Roles whose weight scales an architecture's file in llama.cpp does not hand on, and the lines that show it."""

    roles: frozenset[str]
    source: str


def drops_ffn_scales(source: str) -> Unscaled:
    return Unscaled(_DENSE_FFN, source)


def drops_expert_scales(source: str) -> Unscaled:
    return Unscaled(_EXPERTS | _SHARED, source)


@dataclass(frozen=True, slots=True)
class PublishedArch:
    """What llama.cpp's file for one architecture knows of linears; architectures' records have one."""

    biases: frozenset[str] = frozenset()
    """Roles whose biases its loader creates, beside q, k and v."""
    unscaled: Unscaled | None = None


@dataclass(frozen=True, slots=True)
class LinearFacts:
    """What the rules look at. `role` is the last part of the GGUF name: `ffn_up`."""

    arch: PublishedArch
    role: str
    type: str
    scale: str | None = None
    """The tensor with its weight scale."""
    adapted: bool = False
    decomposed: bool = False
    """One of its adapters is DoRA's."""
    biased: bool = False
    tied: bool = False
    """The output's weight is the embedding's."""

    @property
    def scaled(self) -> bool:
        return self.scale is not None


@dataclass(frozen=True, slots=True)
class Rule:
    outcome: Outcome
    when: str
    """The case, in words."""
    why: str
    source: str
    """File and lines in llama.cpp's `src/`."""
    holds: Callable[[LinearFacts], bool]


def _bias_is_unknown(x: LinearFacts) -> bool:
    return x.biased and x.role not in _ATTENTION_IN | x.arch.biases


def _scale_is_unknown(x: LinearFacts) -> bool:
    never = x.role in ("token_embd", "ffn_gate_inp", "ffn_gate_inp_shexp")
    return x.scaled and (never or (x.role == "output" and (x.tied or x.type != "NVFP4")))


#: The first rule that holds decides.
RULES: tuple[Rule, ...] = (
    Rule(
        Outcome.REFUSES,
        "DoRA",
        "adapters are pairs of A and B: its converter and its loader do not handle a magnitude",
        "../convert_lora_to_gguf.py:470-483, llama-adapter.cpp:274-297",
        lambda x: x.decomposed,
    ),
    Rule(
        Outcome.ABORTS,
        "tied NVFP4 output whose scale is called output.scale",
        "an assertion demands an output tensor of its own",
        "llama-model.cpp:1796-1801",
        lambda x: x.role == "output" and x.tied and x.scale == "output.scale" and x.type == "NVFP4",
    ),
    Rule(
        Outcome.REFUSES,
        "a scale of the embedding, of a router, or of an output that is not NVFP4",
        "the loader does not expect this tensor and counts one too many",
        "llama-model.cpp:1640-1787, llama-model-loader.cpp:1396-1398",
        _scale_is_unknown,
    ),
    Rule(
        Outcome.REFUSES,
        "a bias that the architecture's loader does not list",
        "the loader does not expect this tensor and counts one too many",
        "llama-model-loader.cpp:1396-1398",
        _bias_is_unknown,
    ),
    Rule(
        Outcome.REFUSES,
        "gate and up of the experts in one tensor",
        "the loader of this architecture wants two",
        "models/qwen3moe.cpp:52-54",
        lambda x: x.role == "ffn_gate_up_exps",
    ),
    Rule(
        Outcome.DROPS,
        "scaled weight whose scale the architecture's graph does not hand on",
        "build_ffn or build_moe_ffn is given no scale",
        "by architecture, below",
        lambda x: x.scaled and x.arch.unscaled is not None and x.role in x.arch.unscaled.roles,
    ),
    Rule(
        Outcome.ABORTS,
        "NVFP4 FFN weight with scale and bias",
        "build_ffn would scale after the bias; an assertion forbids it",
        "llama-graph.cpp:1793-1795",
        lambda x: x.role in _DENSE_FFN | _SHARED and x.scaled and x.biased and x.type == "NVFP4",
    ),
    Rule(
        Outcome.ABORTS,
        "NVFP4 FFN weight with scale and LoRA",
        "build_ffn would scale after the adapter; an assertion forbids it",
        "llama-graph.cpp:1796-1798",
        lambda x: x.role in _DENSE_FFN | _SHARED and x.scaled and x.adapted and x.type == "NVFP4",
    ),
    Rule(
        Outcome.MISORDERS,
        "FFN weight of another type with scale and LoRA or bias",
        "build_ffn scales after LoRA and bias, and no assertion looks at other types",
        "llama-graph.cpp:1800-1835, 1940-1958",
        lambda x: x.role in _DENSE_FFN | _SHARED and x.scaled and (x.adapted or x.biased),
    ),
    Rule(
        Outcome.REFUSES,
        "LoRA on a tied output",
        "the adapter's loader wants a tensor called output.weight",
        "llama-adapter.cpp:333-335",
        lambda x: x.role == "output" and x.tied and x.adapted,
    ),
    Rule(
        Outcome.ABORTS,
        "LoRA on an embedding that is the output too",
        "build_lora_mm finds the embedding's adapter, which is stored transposed, at the output",
        "llama-adapter.cpp:140-149, llama-graph.cpp:1532-1545, 2403-2416",
        lambda x: x.role == "token_embd" and x.tied and x.adapted,
    ),
    Rule(
        Outcome.RIGHT,
        "everything else",
        "build_lora_mm and build_lora_mm_id scale before the adapter, and the bias comes last",
        "llama-graph.cpp:1520-1599",
        lambda x: True,
    ),
)


def published(linear: LinearFacts) -> Rule:
    """What llama.cpp's published graph does with the linear."""
    rule = next(rule for rule in RULES if rule.holds(linear))
    if rule.outcome is Outcome.DROPS and linear.arch.unscaled is not None:
        return replace(rule, source=linear.arch.unscaled.source)
    return rule
