"""The reference backend against transformers."""

from __future__ import annotations

import numpy as np
import pytest

from loragraft.archs.graphs import build_graph, tensor_facts
from loragraft.backends.base import Options
from loragraft.backends.reference import ReferenceBackend
from loragraft.errors import UnsupportedError
from loragraft.models import open_model
from paths import data
from small_models import small_model
from tolerances import REFERENCE, REFERENCE_F16_MERGE, nmse


@pytest.mark.parametrize(
    ("model", "case", "tolerance"),
    [
        ("llama-kjv", "llama", REFERENCE),
        ("qwen2-bias", "qwen2", REFERENCE),
        ("starcoder2-bias", "starcoder2", REFERENCE),
        ("qwen3moe-8x", "qwen3moe", REFERENCE),
        ("gguf/llama-kjv.merged-f16.gguf", "llama+lora", REFERENCE_F16_MERGE),
        ("gguf/starcoder2-bias-f16.gguf", "starcoder2", REFERENCE),
        ("gguf/qwen3moe-8x-f16.gguf", "qwen3moe", REFERENCE),
    ],
)
def test_logits_of_transformers(model: str, case: str, tolerance: float) -> None:
    golden = np.load(data("golden/hf-logits.npz"))
    source = open_model(data(model))
    graph = build_graph(source.metadata, tensor_facts(source.tensors))
    logits = ReferenceBackend().open(graph, source.tensors).forward(golden["ids"].astype(np.int32))
    assert logits.dtype == np.float32
    assert nmse(logits, golden[case]) < tolerance


def test_rounded_activations_are_refused() -> None:
    small = small_model("llama", np.random.default_rng(2))
    with pytest.raises(UnsupportedError, match="activations: found q8"):
        ReferenceBackend().open(small.graph(), small.arrays, Options(activations="q8"))
