"""Architectures and options without a trained fixture, against transformers 5.17.

`golden/small-hf.npz` holds random two-layer models (weights float16 under their GGUF names, q and k of the Llama
family permuted as GGUF has them) and the float32 logits that transformers gives for `ids`.
"""

from __future__ import annotations

import numpy as np
import pytest

from gpu import WITH_GPUS
from loragraft.archs.graphs import build_graph
from loragraft.backends.cpu.program import NativeBackend
from loragraft.backends.program import Backend
from loragraft.backends.reference import ReferenceBackend
from loragraft.formats.gguf.values import Value
from loragraft.graph.ops import TensorFact
from paths import arrays
from running import logits_of
from tolerances import NATIVE_F32, REFERENCE, nmse

EXPERTS = {"expert_count": Value.u32(4), "expert_used_count": Value.u32(2)}
CASES = {
    "qwen3": ("qwen3", {"attention.layer_norm_rms_epsilon": Value.f32(1e-6)}),
    "qwen2moe": ("qwen2moe", {"attention.layer_norm_rms_epsilon": Value.f32(1e-6), **EXPERTS}),
    "mixtral": ("llama", {"attention.layer_norm_rms_epsilon": Value.f32(1e-5), **EXPERTS}),
    "yarn": (
        "qwen2",
        {
            "attention.layer_norm_rms_epsilon": Value.f32(1e-6),
            "rope.scaling.type": Value.string("yarn"),
            "rope.scaling.factor": Value.f32(4.0),
            "rope.scaling.original_context_length": Value.u32(16),
        },
    ),
    "window": (
        "llama",
        {
            "attention.layer_norm_rms_epsilon": Value.f32(1e-6),
            "attention.sliding_window": Value.u32(4),
            "rope.freq_base": Value.f32(500.0),
            "rope.scaling.type": Value.string("linear"),
            "rope.scaling.factor": Value.f32(2.0),
        },
    ),
}
BACKENDS = [
    pytest.param(ReferenceBackend(), REFERENCE, id="reference"),
    pytest.param(NativeBackend(), NATIVE_F32, id="native"),
    *WITH_GPUS,
]


@pytest.mark.parametrize(("backend", "tolerance"), BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_small_models_of_transformers(case: str, backend: Backend, tolerance: float) -> None:
    golden = arrays("golden/small-hf.npz")
    arch, keys = CASES[case]
    common = {
        "block_count": Value.u32(2),
        "context_length": Value.u32(64),
        "embedding_length": Value.u32(32),
        "feed_forward_length": Value.u32(48),
        "attention.head_count": Value.u32(4),
        "attention.head_count_kv": Value.u32(2),
    }
    metadata = {f"{arch}.{key}": value for key, value in (common | keys).items()}
    weights = {
        key.partition(":")[2]: golden[key].astype(np.float32)
        for key in golden
        if key.startswith(f"{case}:") and not key.endswith(":logits")
    }
    facts = {name: TensorFact(array.shape, "F32") for name, array in weights.items()}
    graph = build_graph({"general.architecture": Value.string(arch), **metadata}, facts)
    logits = logits_of(backend, graph, weights, golden["ids"])
    assert nmse(logits, golden[f"{case}:logits"]) < tolerance
