"""Keys of a GGUF that the graphs do not read: harmless, off, named in a note, or refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from gguf import constants

from loragraft.archs.graphs import check_keys, model_graph
from loragraft.archs.hparams import read_decoder
from loragraft.archs.metadata import MetadataKeys
from loragraft.errors import LoragraftError, UnsupportedError
from loragraft.formats.gguf import keys as facts
from loragraft.formats.gguf.values import Metadata, Value, ValueType
from loragraft.formats.source import ModelSource
from loragraft.formats.views import in_memory
from small_models import LAYERS, small_model


def notes(name: str, **extra: Value) -> list[str]:
    """Of a small model with the keys `extra` (dots written as __)."""
    keys: Metadata = dict(small_model(name, np.random.default_rng(0)).metadata)
    keys |= {f"{name.split('/')[0]}.{key.replace('__', '.')}": value for key, value in extra.items()}
    return check_keys(keys)


def defined(group: type) -> Iterator[str]:
    for value in vars(group).values():
        if isinstance(value, type):
            yield from defined(value)
        elif isinstance(value, str) and value.startswith("{arch}.") and "{dense}" not in value:
            yield value.removeprefix("{arch}.")


def test_every_key_that_gguf_defines_is_on_one_list() -> None:
    """What is no feature of some architectures, every decoder reads."""
    read = MetadataKeys(small_model("llama", np.random.default_rng(0)).metadata)
    read_decoder(read)
    lists = [read.asked, facts.HARMLESS, facts.USUAL.keys(), facts.FEATURES]
    for key in defined(constants.Keys):
        found = sum(key in names for names in lists) + key.startswith(facts.FEATURE_GROUPS)
        assert found == 1, key


@pytest.mark.parametrize("name", LAYERS)
def test_ordinary_models_have_nothing_to_note(name: str) -> None:
    assert notes(name) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attention__causal", Value.boolean(False)),
        ("attention__scale", Value.f32(0.5)),
        ("attention__clamp_kqv", Value.f32(8.0)),
        ("attention__sliding_window_pattern", Value.u32(2)),
        ("attn_logit_softcapping", Value.f32(50.0)),
        ("final_logit_softcapping", Value.f32(30.0)),
        ("logit_scale", Value.f32(0.1)),
        ("residual_scale", Value.f32(0.22)),
        ("embedding_scale", Value.f32(12.0)),
        ("rope__scaling__alpha", Value.f32(1000.0)),
        ("rope__scaling__yarn_log_multiplier", Value.f32(0.1)),
        ("rope__dimension_sections", Value.numbers(ValueType.INT32, [16, 24, 24, 0])),
        ("nextn_predict_layers", Value.u32(1)),
        ("expert_gating_func", Value.u32(2)),
        ("expert_group_count", Value.u32(8)),
        ("expert_weights_scale", Value.f32(2.5)),
        ("ssm__conv_kernel", Value.u32(4)),
    ],
)
def test_what_changes_the_results_is_refused(key: str, value: Value) -> None:
    extra = {key: value}
    if key.endswith("pattern"):
        extra["attention__sliding_window"] = Value.u32(8)
    with pytest.raises(UnsupportedError, match=rf"^llama\.{key.replace('__', '.')}: ") as refusal:
        notes("llama", **extra)
    assert "\n" not in str(refusal.value)


def test_weights_of_experts_that_are_not_this_architectures() -> None:
    assert notes("qwen3moe", expert_weights_norm=Value.boolean(True)) == []
    assert notes("qwen2moe", expert_weights_norm=Value.boolean(False)) == []
    assert notes("qwen3moe", expert_weights_norm=Value.boolean(False)) == []  # computed so
    with pytest.raises(UnsupportedError, match=r"qwen3moe\.expert_weights_scale: .*: found 2"):
        notes("qwen3moe", expert_weights_scale=Value.f32(2.0))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("vocab_size", Value.u32(40)),
        ("tensor_data_layout", Value.string("Meta AI original pth")),
        ("pooling_type", Value.u32(3)),
        ("rope__scaling__finetuned", Value.boolean(True)),
        ("attention__causal", Value.boolean(True)),
        ("attention__scale", Value.f32(8**-0.5)),
        ("logit_scale", Value.f32(1.0)),
        ("logit_scale", Value.f32(0.0)),
        ("expert_gating_func", Value.u32(1)),
        ("use_parallel_residual", Value.boolean(False)),
        ("rope__dimension_sections", Value.numbers(ValueType.INT32, [0, 0, 0, 0])),
    ],
)
def test_what_says_nothing_new_is_read_over(key: str, value: Value) -> None:
    assert notes("llama", **{key: value}) == []


@pytest.mark.parametrize(
    "value",
    [Value.string("x"), Value.strings(["a"]), Value.numbers(ValueType.INT32, [1, 0]), Value.f32(np.nan)],
)
def test_values_of_another_kind_are_refused(value: Value) -> None:
    for key in (
        "logit_scale",
        "attention__causal",
        "attention__scale",
        "expert_group_count",
    ):
        with pytest.raises(UnsupportedError, match=key.replace("__", ".")):
            notes("qwen3moe", **{key: value})


def test_keys_of_nobodys_are_noted() -> None:
    assert notes("llama", my__key=Value.u32(1)) == ["llama.my.key: not a key that GGUF defines, and not read"]


def test_a_magnitude_that_nothing_reads_is_noted() -> None:
    """As the reference converter writes transformers' attention_factor."""
    yarn = {"rope__scaling__type": Value.string("yarn"), "rope__scaling__factor": Value.f32(4.0)}
    [note] = notes("llama", **yarn, rope__scaling__yarn_attn_factor=Value.f32(1.0))
    assert note.startswith("llama.rope.scaling.yarn_attn_factor = 1 is not read, as llama.cpp does not")
    usual = Value.f32(1 + 0.1 * float(np.log(4)))
    assert notes("llama", **yarn, rope__scaling__yarn_attn_factor=usual) == []
    both = {"rope__scaling__yarn_attn_factor": Value.f32(1.0), "rope__scaling__attn_factor": Value.f32(0.9)}
    assert notes("llama", **yarn, **both) == []


def test_the_file_is_named_and_notes_are_the_models(tmp_path: Path) -> None:
    small = small_model("llama", np.random.default_rng(0))
    keys = small.metadata | {"llama.my_key": Value.u32(1)}
    source = ModelSource(
        tmp_path / "m.gguf",
        "llama",
        keys,
        {name: in_memory(name, array) for name, array in small.arrays.items()},
        [],
    )
    for _ in range(2):
        model_graph(source)
    assert source.notes == ["llama.my_key: not a key that GGUF defines, and not read"]
    source.metadata["llama.logit_scale"] = Value.f32(0.5)
    with pytest.raises(LoragraftError, match=r"m\.gguf: llama\.logit_scale: no graph of llama computes this"):
        model_graph(source)
