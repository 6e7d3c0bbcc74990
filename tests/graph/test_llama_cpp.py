"""The rules about llama.cpp's published graph, case by case, and their table in the documentation."""

from __future__ import annotations

import pytest

import tolerances
from loragraft.archs import ARCHS
from loragraft.graph.llama_cpp import RULES, LinearFacts, Outcome, published
from paths import ROOT


def facts(arch: str, role: str, type: str, scale: str | None = None, **more: bool) -> LinearFacts:  # noqa: A002
    return LinearFacts(ARCHS.by_name(arch).llama_cpp, role, type, scale, **more)


@pytest.mark.parametrize(
    ("linear", "outcome"),
    [
        (facts("llama", "ffn_up", "Q4_K", adapted=True), Outcome.RIGHT),
        (facts("llama", "ffn_up", "NVFP4", "blk.0.ffn_up.scale"), Outcome.RIGHT),
        (facts("llama", "ffn_up", "NVFP4", "blk.0.ffn_up.scale", adapted=True), Outcome.ABORTS),
        (facts("llama", "ffn_up", "NVFP4", "blk.0.ffn_up.scale", biased=True), Outcome.ABORTS),
        (facts("llama", "ffn_up", "F16", "blk.0.ffn_up.scale", adapted=True), Outcome.MISORDERS),
        (
            facts("llama", "attn_q", "NVFP4", "blk.0.attn_q.scale", adapted=True, biased=True),
            Outcome.RIGHT,
        ),
        (facts("llama", "attn_output", "NVFP4", "blk.0.attn_output.scale", biased=True), Outcome.RIGHT),
        (
            facts("qwen2", "attn_output", "NVFP4", "blk.0.attn_output.scale", biased=True),
            Outcome.REFUSES,
        ),
        (facts("qwen2", "ffn_up", "NVFP4", "blk.0.ffn_up.scale"), Outcome.DROPS),
        (
            facts("starcoder2", "ffn_up", "NVFP4", "blk.0.ffn_up.scale", adapted=True, biased=True),
            Outcome.DROPS,
        ),
        (facts("starcoder2", "ffn_down", "Q8_0", adapted=True, biased=True), Outcome.RIGHT),
        (
            facts("qwen3moe", "ffn_up_exps", "NVFP4", "blk.0.ffn_up_exps.scale", adapted=True),
            Outcome.RIGHT,
        ),
        (facts("qwen2moe", "ffn_up_exps", "NVFP4", "blk.0.ffn_up_exps.scale"), Outcome.DROPS),
        (
            facts("qwen2moe", "ffn_up_shexp", "NVFP4", "blk.0.ffn_up_shexp.scale", adapted=True),
            Outcome.DROPS,
        ),
        (facts("gemma3", "ffn_down", "NVFP4", "blk.0.ffn_down.scale"), Outcome.DROPS),
        (facts("gemma3", "attn_output", "F16", biased=True), Outcome.REFUSES),
        (facts("qwen3moe", "ffn_gate_up_exps", "NVFP4"), Outcome.REFUSES),
        (facts("llama", "ffn_gate_inp", "NVFP4", "blk.0.ffn_gate_inp.scale"), Outcome.REFUSES),
        (facts("llama", "output", "NVFP4", "output.scale", adapted=True), Outcome.RIGHT),
        (facts("llama", "output", "Q8_0", "output.scale"), Outcome.REFUSES),
        (facts("qwen2", "output", "NVFP4", "output.scale", tied=True), Outcome.ABORTS),
        (facts("qwen2", "output", "NVFP4", "token_embd.scale", tied=True), Outcome.REFUSES),
        (facts("qwen2", "output", "F16", adapted=True, tied=True), Outcome.REFUSES),
        (facts("qwen2", "token_embd", "F16", adapted=True, tied=True), Outcome.ABORTS),
        (facts("llama", "token_embd", "F16", adapted=True), Outcome.RIGHT),
        (facts("llama", "attn_q", "F16", adapted=True, decomposed=True), Outcome.REFUSES),
    ],
)
def test_what_the_published_graph_does_with_a_linear(linear: LinearFacts, outcome: Outcome) -> None:
    assert published(linear).outcome is outcome


def test_the_documentation_shows_every_rule_and_tolerance() -> None:
    text = (ROOT / "docs" / "numerics.md").read_text()
    for rule in RULES:
        assert f"| {rule.when} | {rule.outcome} | {rule.why} | {rule.source} |" in text
    for arch in ARCHS:
        if (unscaled := arch.llama_cpp.unscaled) is not None:
            roles = ", ".join(sorted(unscaled.roles))
            assert f"| {arch.name} | {roles} | {unscaled.source} |" in text
    bounds = {name: value for name, value in vars(tolerances).items() if name.isupper()}
    assert bounds
    for name, value in bounds.items():
        assert f"| {name} | {value} |" in text
