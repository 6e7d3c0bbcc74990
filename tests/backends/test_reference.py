"""The reference backend against transformers."""

from __future__ import annotations

import numpy as np
import pytest

from golden_logits import FLOAT_CASES, NVFP4_CASES
from loragraft.archs.graphs import build_graph, tensor_facts
from loragraft.backends.reference import ReferenceBackend
from loragraft.graph.lora import attach
from loragraft.opening import load_adapter, open_model
from paths import arrays, data
from running import logits_of
from tolerances import REFERENCE, REFERENCE_F16_MERGE, nmse

CASES = [
    *FLOAT_CASES,
    ("gguf/starcoder2-bias-f16.gguf", "starcoder2-bias.pattern", "starcoder2+pattern"),
    ("gguf/qwen3moe-8x-f16.gguf", None, "qwen3moe"),
]


def distance(file: str, model: str, adapter: str | None, case: str) -> float:
    """The reference backend's NMSE from the golden logits."""
    golden = arrays(f"golden/{file}")
    source = open_model(data(model))
    adapters = [] if adapter is None else [(load_adapter(data(adapter), source), 1.0)]
    graph, extra = attach(
        build_graph(source.metadata, tensor_facts(source.tensors)), adapters, source.tensors
    )
    logits = logits_of(ReferenceBackend(), graph, {**source.tensors, **extra}, golden["ids"])
    assert logits.dtype == np.float32
    return nmse(logits, golden[case])


@pytest.mark.parametrize(("model", "adapter", "case"), CASES)
def test_logits_of_transformers(model: str, adapter: str | None, case: str) -> None:
    assert distance("hf-logits.npz", model, adapter, case) < REFERENCE


@pytest.mark.parametrize(("model", "adapter", "case"), NVFP4_CASES)
def test_logits_of_modelopt_nvfp4(model: str, adapter: str | None, case: str) -> None:
    assert distance("hf-logits-modelopt-nvfp4.npz", model, adapter, case) < REFERENCE


def test_logits_of_a_model_merged_to_f16() -> None:
    assert (
        distance("hf-logits.npz", "gguf/llama-kjv.merged-f16.gguf", None, "llama+lora") < REFERENCE_F16_MERGE
    )
