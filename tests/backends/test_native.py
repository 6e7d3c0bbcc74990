"""The native backend against transformers."""

from __future__ import annotations

import numpy as np
import pytest

from loragraft.archs.graphs import build_graph, tensor_facts
from loragraft.backends.base import Options
from loragraft.backends.native import NativeBackend
from loragraft.errors import UnsupportedError
from loragraft.models import open_model
from paths import data
from small_models import small_model
from tolerances import NATIVE_F32, REFERENCE_F16_MERGE, nmse


@pytest.mark.parametrize(
    ("model", "case", "tolerance"),
    [
        ("llama-kjv", "llama", NATIVE_F32),
        ("qwen2-bias", "qwen2", NATIVE_F32),
        ("starcoder2-bias", "starcoder2", NATIVE_F32),
        ("qwen3moe-8x", "qwen3moe", NATIVE_F32),
        ("gguf/llama-kjv.merged-f16.gguf", "llama+lora", REFERENCE_F16_MERGE),
    ],
)
def test_logits_of_transformers(model: str, case: str, tolerance: float) -> None:
    golden = np.load(data("golden/hf-logits.npz"))
    source = open_model(data(model))
    session = NativeBackend().open(build_graph(source.metadata, tensor_facts(source.tensors)), source.tensors)
    ids = golden["ids"].astype(np.int32)
    assert nmse(session.forward(ids), golden[case]) < tolerance
    session.reset()
    one_by_one = np.concatenate([session.forward(ids[i : i + 1]) for i in range(len(ids))])
    assert nmse(one_by_one, golden[case]) < tolerance


def test_an_unchecked_graph_is_refused() -> None:
    small = small_model("llama", np.random.default_rng(2))
    with pytest.raises(UnsupportedError, match="use backend reference"):
        NativeBackend().open(small.graph(), small.arrays, Options(unchecked=True))
