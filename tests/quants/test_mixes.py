"""Type selection against every run of llama-quantize in the golden files, and where the rules go beyond it."""

from __future__ import annotations

import numpy as np
import pytest

import golden
from loragraft.errors import QuantizeError, UnsupportedError
from loragraft.quants.filetypes import BY_NUMBER, file_type
from loragraft.quants.mixes import ModelFacts, TensorChoice, TypeOptions, fitting, plan_types
from loragraft.quants.roles import may_quantize, output_order
from loragraft.quants.types import BY_NAME, F16, F32, QuantType, by_name

#: Facts of the golden files' models, which the golden files do not hold.
FACTS = {
    "llama-merged": ModelFacts("llama", layers=4, heads=4, heads_kv=2),
    "odd-shapes": ModelFacts("llama", layers=3, heads=4, heads_kv=2),
    "qwen3moe": ModelFacts("qwen3moe", layers=3, experts=8, heads=4, heads_kv=2),
    "starcoder2": ModelFacts("starcoder2", layers=3, heads=4, heads_kv=2),
}


def options_of(run: golden.Run) -> TypeOptions:
    patterns = [value.split("=") for value in run.option("--tensor-type")]
    output, embedding = run.option("--output-tensor-type"), run.option("--token-embedding-type")
    return TypeOptions(
        file_type(run.target),
        pure=bool(run.option("--pure")),
        leave_output=bool(run.option("--leave-output-tensor")),
        output_type=by_name(output[0]) if output else None,
        token_embedding_type=by_name(embedding[0]) if embedding else None,
        patterns=[(pattern, by_name(name)) for pattern, name in patterns],
        has_imatrix=run.imatrix,
    )


def source_tensors(file: str) -> dict[str, tuple[tuple[int, ...], QuantType]]:
    """The F16 model's tensors, in the order of the outputs (the F16 run copies the source)."""
    f16 = next(run for run in golden.runs(file) if run.name == "F16")
    return {
        name: (tuple(reversed(tensor["shape"])), BY_NAME[tensor["type"]])
        for name, tensor in f16.result["tensors"].items()
    }


def choices(run: golden.Run) -> list[TensorChoice]:
    return plan_types(source_tensors(run.file), FACTS[run.file], options_of(run))


@pytest.mark.parametrize("file", golden.FILES)
def test_types_of_every_golden_run(file: str, summary: dict[str, str]) -> None:
    agreed = {
        run.name: {choice.name: choice.type.name for choice in choices(run)} == run.types
        for run in golden.runs(file)
        if run.refused is None
    }
    summary[f"types in golden/{file}-quantize.json"] = f"{sum(agreed.values())} of {len(agreed)} runs"
    assert [name for name, same in agreed.items() if not same] == []


@pytest.mark.parametrize("file", golden.FILES)
def test_refused_runs_need_importance_or_have_no_fallback_there(file: str) -> None:
    for run in golden.runs(file):
        lacking = any(choice.needs_importance for choice in choices(run)) and not run.imatrix
        assert lacking == (run.refused == "this quantization requires an imatrix!"), run.name
        if run.refused and "no tensor type fallback is defined" in run.refused:
            unfit = [choice for choice in choices(run) if choice.unfit]
            assert unfit
            assert all(choice.type.name in ("Q4_1", "IQ4_NL", "F16") for choice in unfit)


@pytest.mark.parametrize("file", golden.FILES)
def test_output_order(file: str) -> None:
    names = list(source_tensors(file))
    assert output_order(reversed(names)) == names


def test_output_order_is_by_number_not_by_digits() -> None:
    assert output_order(["blk.10.a", "blk.2.b", "blk.2.a", "output.weight"]) == [
        *("output.weight", "blk.2.a", "blk.2.b", "blk.10.a")
    ]


def layers(n: int, part: str, columns: int = 256) -> dict[str, tuple[tuple[int, int], QuantType]]:
    return {f"blk.{i}.{part}.weight": ((256, columns), F16) for i in range(n)}


def planned(
    target: str, tensors: dict[str, tuple[tuple[int, int], QuantType]], facts: ModelFacts
) -> list[str]:
    return [choice.type.name for choice in plan_types(tensors, facts, TypeOptions(file_type(target)))]


def test_70b_models_get_more_for_values() -> None:
    facts = ModelFacts("llama", layers=80, heads=64, heads_kv=8)
    assert set(planned("Q3_K_S", layers(80, "attn_v"), facts)) == {"Q5_K"}
    mha = ModelFacts("llama", layers=80, heads=64, heads_kv=64)
    assert set(planned("Q3_K_S", layers(80, "attn_v"), mha)) == {"Q3_K"}


def test_falcon_has_its_own_ffn_down() -> None:
    down = layers(32, "ffn_down")
    falcon = planned("Q4_K_M", down, ModelFacts("falcon", layers=32))
    assert falcon[:2] == ["Q6_K"] * 2
    assert falcon[2:7] == ["Q5_K", "Q5_K", "Q4_K", "Q4_K", "Q5_K"]
    assert planned("Q4_K_M", down, ModelFacts("llama", layers=32))[:7] == [
        *("Q6_K", "Q6_K", "Q6_K", "Q6_K", "Q4_K", "Q4_K", "Q6_K")
    ]


def test_a_manual_type_does_not_advance_the_counters() -> None:
    """So the next tensor takes the place of the one that was decided by hand."""
    down = layers(32, "ffn_down")
    options = TypeOptions(file_type("Q4_K_S"), patterns=[("blk.0.ffn_down", BY_NAME["Q8_0"])])
    types = [c.type.name for c in plan_types(down, ModelFacts("llama", layers=32), options)]
    assert types[:7] == ["Q8_0", "Q5_K", "Q5_K", "Q5_K", "Q5_K", "Q4_K", "Q4_K"]


def test_per_layer_embedding_yields_to_a_pattern() -> None:
    tensors = dict.fromkeys(("per_layer_token_embd.weight", "token_embd.weight"), ((512, 256), F16))
    options = TypeOptions(
        file_type("Q4_K_M"),
        token_embedding_type=BY_NAME["Q8_0"],
        patterns=[("token_embd", BY_NAME["Q5_K"])],
    )
    types = [c.type.name for c in plan_types(tensors, ModelFacts("gemma3n", layers=1), options)]
    assert types == ["Q5_K", "Q8_0"]


def test_expert_layers_are_read_from_the_name() -> None:
    facts = ModelFacts("llama", layers=16, experts=2)
    tensors = {f"blk.{i}.ffn_down.{e}.weight": ((256, 256), F16) for i in range(3) for e in range(2)}
    assert planned("Q4_K_S", tensors, facts) == ["Q5_K"] * 4 + ["Q4_K"] * 2
    with pytest.raises(QuantizeError, match=r"found layer 16, expected blk\.N\. with N below 16"):
        planned("Q4_K_S", {"blk.16.ffn_down.weight": ((256, 256), F16)}, facts)


@pytest.mark.parametrize(
    ("wanted", "columns", "chosen"),
    [
        *(("Q4_K", 512, "Q4_K"), ("Q4_K", 288, "Q5_0"), ("Q5_K", 288, "Q5_1"), ("Q6_K", 288, "Q8_0")),
        *(("IQ4_XS", 288, "IQ4_NL"), ("TQ1_0", 288, "Q4_0"), ("Q2_0", 96, "Q4_0"), ("Q4_K", 776, "F16")),
        *(("Q8_0", 776, "F16"), ("NVFP4", 288, "IQ4_NL"), ("Q1_0", 288, "Q4_1"), ("NVFP4", 776, "F16")),
    ],
)
def test_fallback(wanted: str, columns: int, chosen: str) -> None:
    assert fitting(BY_NAME[wanted], columns).name == chosen


@pytest.mark.parametrize(
    ("name", "shape", "may"),
    [
        ("blk.0.attn_q.weight", (256, 256), True),
        ("blk.0.attn_q.bias", (256, 256), False),
        ("blk.0.attn_norm.weight", (256,), False),
        ("blk.0.attn_q.weight", (1, 256), False),  # ggml does not count a slow axis of length 1
        ("blk.0.attn_q.weight", (256, 1), True),
        ("blk.0.ffn_gate_inp.weight", (8, 256), False),
        ("position_embd.weight", (512, 256), False),
        ("blk.0.time_mix_w1.weight", (64, 256), False),
        ("blk.0.ssm_beta.weight", (64, 256), True),
    ],
)
def test_may_quantize(name: str, shape: tuple[int, ...], may: bool) -> None:
    assert may_quantize(name, shape, "llama") is may


def test_an_architecture_may_exclude_more() -> None:
    assert not may_quantize("blk.0.ssm_beta.weight", (64, 256), "glm5-next")


def test_file_types_by_name_alias_and_number() -> None:
    assert file_type("q4_k").name == file_type("Q4_K_M").name == file_type("15").name == "Q4_K_M"
    assert file_type("COPY").copies
    assert {row.number for row in BY_NUMBER.values()} == {*range(4), *range(7, 33), *range(36, 42)}
    for wrong in ("", "Q9_K", "4", "42", "²", "-1"):
        with pytest.raises(UnsupportedError, match="no such file type"):
            file_type(wrong)


def test_a_slip_of_the_pen_is_named() -> None:
    for wrong, right in (("Q4KM", "Q4_K_M"), ("q4_k_mm", "Q4_K_M"), ("NVFP-4", "NVFP4")):
        with pytest.raises(UnsupportedError, match=f"; did you mean {right}\\?$"):
            file_type(wrong)
    with pytest.raises(UnsupportedError, match=r"expected one of [A-Z0-9_, ]+$"):
        file_type("out.gguf")


def test_facts_from_metadata() -> None:
    metadata: dict[str, object] = {
        "general.architecture": "qwen3moe",
        "qwen3moe.block_count": 80,
        "qwen3moe.attention.head_count": 32,
        "qwen3moe.attention.head_count_kv": np.array([4, 8], np.int32),
    }
    facts = ModelFacts.of(metadata)
    assert (facts.layers, facts.experts, facts.group) == (80, 0, 8)
    metadata["qwen3moe.block_count"] = "many"
    with pytest.raises(QuantizeError, match="must be a whole number: found 'many'"):
        ModelFacts.of(metadata)


def test_a_pattern_that_is_no_regular_expression() -> None:
    options = TypeOptions(file_type("Q4_0"), patterns=[("attn(", F32)])
    with pytest.raises(QuantizeError, match="not a regular expression"):
        plan_types({}, ModelFacts("llama", 1), options)
