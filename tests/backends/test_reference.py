"""The reference backend against transformers, and its sessions against themselves."""

from __future__ import annotations

import numpy as np
import pytest

from loragraft.archs.graphs import build_graph, tensor_facts
from loragraft.backends.base import Options, Session
from loragraft.backends.reference import ReferenceBackend
from loragraft.errors import GraphError, UnsupportedError
from loragraft.models import open_model
from paths import data
from small_models import small_model
from tolerances import REFERENCE, REFERENCE_F16_MERGE, nmse

IDS = np.array([3, 17, 39, 0, 17, 5, 21, 8], dtype=np.int32)


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


def open_small(options: Options | None = None, name: str = "llama") -> Session:
    small = small_model(name, np.random.default_rng(2), layers=2)
    return ReferenceBackend().open(small.graph(), small.arrays, options)


def test_the_cache_remembers() -> None:
    whole = open_small().forward(IDS)
    session = open_small()
    pieces = [session.forward(part) for part in np.split(IDS, [1, 2, 6])]
    assert session.n_past == len(IDS)
    assert nmse(np.concatenate(pieces), whole) < REFERENCE


def test_last_only_gives_the_last_row() -> None:
    whole, last = open_small().forward(IDS), open_small().forward(IDS, last_only=True)
    assert last.shape == (1, 40)
    assert nmse(last[0], whole[-1]) < REFERENCE


def test_reset_forgets_all_or_the_end() -> None:
    session = open_small()
    whole = session.forward(IDS)
    session.reset(5)
    assert session.n_past == 5
    assert nmse(session.forward(IDS[5:]), whole[5:]) < REFERENCE
    session.reset()
    assert nmse(session.forward(IDS), whole) < REFERENCE
    with pytest.raises(GraphError, match="cannot rewind: found 9, expected 0 to 8"):
        session.reset(9)


def test_a_window_hides_what_is_further_back() -> None:
    small = small_model("qwen2", np.random.default_rng(2))
    backend = ReferenceBackend()
    full = backend.open(small.graph(), small.arrays).forward(IDS)
    small.metadata["qwen2.attention.sliding_window"] = small.metadata[
        "qwen2.attention.head_count"
    ]  # 4 positions
    session = backend.open(small.graph(), small.arrays)
    windowed = session.forward(IDS)
    assert np.array_equal(windowed[:4], full[:4])
    assert nmse(windowed[4:], full[4:]) > 1e-4
    # One layer: the last token sees exactly the window's four, at their own positions.
    session.reset(4)
    alone = session.forward(IDS[4:])
    assert nmse(alone, windowed[4:]) < REFERENCE


def test_misuse_is_refused() -> None:
    with pytest.raises(GraphError, match="no such token: found 40, expected 0 to 39"):
        open_small().forward(np.array([1, 40], dtype=np.int32))
    with pytest.raises(GraphError, match="the context is full: found 8, expected up to 7 tokens"):
        open_small(Options(context=7)).forward(IDS)
    with pytest.raises(GraphError, match="at least one"):
        open_small().forward(IDS[:0])
    with pytest.raises(UnsupportedError, match="activations: found q8"):
        open_small(Options(activations="q8"))
