from __future__ import annotations

from pathlib import Path

import pytest

from loragraft.adapters.kinship import doubt
from loragraft.formats.gguf.values import Value
from loragraft.formats.source import ModelSource
from loragraft.opening import load_adapter, open_model
from paths import data


def model(path: str, **metadata: str) -> ModelSource:
    values = {f"general.{key}": Value.string(text) for key, text in metadata.items()}
    return ModelSource(Path(path), "llama", values, {})


@pytest.mark.parametrize(
    ("trained_on", "base"),
    [
        ("meta-llama/Llama-3.2-1B", model("/models/Llama-3.2-1B")),
        ("unsloth/llama-3.2-1b-bnb-4bit", model("Llama-3.2-1B")),
        ("meta-llama/Llama-3.2-1B", model("Llama-3.2-1B-Q4_K_M.gguf")),
        ("meta-llama/Llama-3.2-1B", model("base.gguf", name="Llama 3.2 1B")),
        ("/home/me/runs/llama-3.2-1b/", model("Llama-3.2-1B")),
        ("", model("base")),
        (None, model("base")),
        ("unsloth/tinyllama-bnb-4bit", model("TinyLlama-1.1B-Chat")),
        ("unsloth/Llama-3.2-1B-Instruct-unsloth-bnb-4bit", model("Llama-3.2-1B-Instruct")),
        ("TheBloke/TinyLlama-GPTQ", model("TinyLlama-1.1B")),
        ("../..", model("base")),
    ],
)
def test_no_doubt(trained_on: object, base: ModelSource) -> None:
    assert doubt(trained_on, base) is None


def test_an_adapter_of_another_base_is_doubted() -> None:
    note = doubt("Qwen/Qwen2-7B", model("Llama-3.2-1B", name="Llama 3.2 1B"))
    assert note is not None
    assert "'Qwen/Qwen2-7B'" in note
    assert "'Llama-3.2-1B'" in note


def test_an_adapter_that_fits_by_chance_is_noticed() -> None:
    llama = open_model(data("llama-kjv"))
    assert load_adapter(data("llama-kjv.shakespeare"), llama).notes == []
    covers, note = load_adapter(data("qwen2-bias.rslora"), llama).notes
    assert "covers 21 of the 28 modules" in covers
    assert note.startswith(f"{data('qwen2-bias.rslora')}: the adapter was trained on 'qwen2-bias'")
