"""The native backend against transformers and peft, on every architecture, float and NVFP4, with and without adapters;
and against the reference backend in every type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from golden_logits import FLOAT_CASES, NVFP4_CASES
from loragraft.archs.graphs import build_graph, tensor_facts
from loragraft.backends.base import Session
from loragraft.backends.batch import Piece
from loragraft.backends.cpu.session import NativeBackend
from loragraft.backends.program import Options
from loragraft.backends.reference import ReferenceBackend
from loragraft.errors import UnsupportedError
from loragraft.formats.gguf.values import Value
from loragraft.formats.source import TensorSource
from loragraft.graph.lora import attach
from loragraft.opening import load_adapter, open_model
from loragraft.quants import native, reference
from loragraft.quants.types import BY_NAME, QuantType
from paths import arrays, data
from small_models import small_model
from tolerances import NATIVE_F32, NATIVE_NVFP4, NATIVE_Q8, REFERENCE_F16_MERGE, nmse


def open_session(model: str, adapter: str | None, options: Options | None = None) -> Session:
    source = open_model(data(model))
    graph = build_graph(source.metadata, tensor_facts(source.tensors))
    weights: Mapping[str, object] = source.tensors
    if adapter is not None:
        graph, extra = attach(graph, [(load_adapter(data(adapter), source), 1.0)], source.tensors)
        weights = {**weights, **extra}
    return NativeBackend().open(graph, weights, options)


def golden(file: str, case: str) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    ids = arrays("golden/hf-logits.npz")["ids"].astype(np.int32)
    return ids, arrays(f"golden/{file}.npz")[case]


@pytest.mark.parametrize(("model", "adapter", "case"), FLOAT_CASES, ids=[case for *_, case in FLOAT_CASES])
def test_float_models(model: str, adapter: str | None, case: str) -> None:
    ids, wanted = golden("hf-logits", case)
    session = open_session(model, adapter)
    assert nmse(session.forward(ids), wanted) < NATIVE_F32
    session.reset()
    one_by_one = np.concatenate([session.forward(ids[i : i + 1]) for i in range(len(ids))])
    assert nmse(one_by_one, wanted) < NATIVE_F32


def test_a_merged_file() -> None:
    ids, wanted = golden("hf-logits", "llama+lora")
    assert (
        nmse(open_session("gguf/llama-kjv.merged-f16.gguf", None).forward(ids), wanted) < REFERENCE_F16_MERGE
    )


@pytest.mark.parametrize(
    ("activations", "tolerance"), [("f32", NATIVE_F32), ("q8", NATIVE_Q8), ("nvfp4", NATIVE_NVFP4)]
)
@pytest.mark.parametrize(("model", "adapter", "case"), NVFP4_CASES, ids=[case for *_, case in NVFP4_CASES])
def test_modelopt_checkpoints(
    model: str, adapter: str | None, case: str, activations: str, tolerance: float
) -> None:
    ids, wanted = golden("hf-logits-modelopt-nvfp4", case)
    session = open_session(model, adapter, Options(activations=activations))
    assert nmse(session.forward(ids), wanted) < tolerance


def test_8_bits_is_what_auto_means() -> None:
    ids, _ = golden("hf-logits", "llama")
    logits = [
        open_session("llama-kjv-nvfp4", None, options).forward(ids)
        for options in (None, Options(activations="q8"))
    ]
    assert np.array_equal(*logits)


def test_threads_do_not_change_a_bit() -> None:
    ids, _ = golden("hf-logits", "llama")
    one, two, three = (
        open_session("qwen3moe-8x-nvfp4", "qwen3moe-8x.experts", Options(threads=n)).forward(ids)
        for n in (1, 2, 3)
    )
    assert np.array_equal(one, two)
    assert np.array_equal(one, three)


class Requantized(TensorSource):
    """A float tensor of a model in another type, in memory."""

    def __init__(self, source: TensorSource, kind: QuantType) -> None:
        self.name, self.shape, self.type = source.name, source.shape, kind
        floats = reference.dequantize(source.rows(0, source.n_rows), source.type)
        self._rows = native.quantize(floats, kind, np.ones(source.columns, np.float32))

        self.released = 0

    def rows(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        return self._rows[start:stop]

    def release(self, start: int, stop: int) -> None:
        self.released += stop - start


TYPES = [kind for kind in BY_NAME.values() if native.supports(kind)]


@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_whole_models_in_every_type(kind: QuantType) -> None:
    """One session fed 7, 64 and 1 tokens; every linear of the first layer and the embedding in the type, or as it was
    where its rows are no whole number of blocks. What the reference computes from the same rows is the truth."""
    source = open_model(data("gguf/llama-kjv.merged-f16.gguf"))
    weights = {
        name: Requantized(tensor, kind)
        if ("blk.0." in name or name == "token_embd.weight")
        and len(tensor.shape) == 2
        and tensor.columns % kind.block == 0
        else tensor
        for name, tensor in source.tensors.items()
    }
    assert any(tensor.type is kind for tensor in weights.values())
    graph = build_graph(source.metadata, tensor_facts(weights))
    ids = np.random.default_rng(1).integers(0, 2000, 72).astype(np.int32)
    wanted = ReferenceBackend().open(graph, weights).forward(ids)
    for activations, tolerance in (("f32", NATIVE_F32), ("q8", NATIVE_Q8)):
        session = NativeBackend().open(graph, weights, Options(activations=activations))
        found = np.concatenate([session.forward(part) for part in np.split(ids, [7, 71])])
        assert nmse(found, wanted) < tolerance, activations


@pytest.mark.parametrize(("activations", "copied"), [("q8", True), ("f32", False)])
def test_pages_of_copied_weights_are_given_back(activations: str, copied: bool) -> None:
    source = open_model(data("gguf/llama-kjv.merged-f16.gguf"))
    weight = Requantized(source.tensors["blk.0.ffn_up.weight"], BY_NAME["Q4_K"])
    weights = {**source.tensors, weight.name: weight}
    graph = build_graph(source.metadata, tensor_facts(weights))
    NativeBackend().open(graph, weights, Options(activations=activations))
    assert weight.released == (weight.n_rows if copied else 0)


def test_a_long_context_of_a_small_model() -> None:
    """Past the first stretch of the angles' table, a batch, and many blocks of keys; with and without a window."""
    ids = np.random.default_rng(4).integers(0, 40, 1300).astype(np.int32)
    for window in (None, 100):
        small = small_model("qwen2", np.random.default_rng(2))
        if window:
            small.metadata["qwen2.attention.sliding_window"] = Value.u32(window)
        graph = small.graph()
        session = NativeBackend().open(graph, small.arrays)
        found = np.concatenate([session.forward(part) for part in np.split(ids, [1000, 1001, 1290])])
        assert nmse(found, ReferenceBackend().open(graph, small.arrays).forward(ids)) < NATIVE_F32, window


def test_a_prompt_longer_than_a_batch() -> None:
    ids, _ = golden("hf-logits", "llama")
    long = np.tile(ids, 12)  # 576 tokens: two passes
    session = open_session("llama-kjv", None)
    whole = session.forward(long)
    session.reset()
    pieces = np.concatenate([session.forward(part) for part in np.split(long, [100, 300])])
    assert nmse(pieces, whole) < NATIVE_F32
    session.reset()
    assert nmse(session.forward(long, last_only=True), whole[-1:]) < NATIVE_F32


@pytest.mark.parametrize("model", ["gguf/llama-kjv.merged-f16.gguf", "gguf/qwen3moe-8x-f16.gguf"])
def test_an_observer_sees_what_meets_the_weights(model: str) -> None:
    source = open_model(data(model))
    graph = build_graph(source.metadata, tensor_facts(source.tensors))
    native = NativeBackend().open(graph, source.tensors)
    ids = np.random.default_rng(1).integers(0, 2000, 40).astype(np.int32)
    seen: dict[str, list[npt.NDArray[Any]]] = {}
    native.observer = lambda weights, x, chosen: seen.update(
        {name: [x.copy(), *([] if chosen is None else [chosen])] for name in weights}
    )
    native.feed(ids)
    assert (native.n_past, "output.weight" in seen) == (40, False)
    native.reset()
    native.forward(ids)
    program = ReferenceBackend().prepare(graph, source.tensors)
    meant: dict[str, list[npt.NDArray[Any]]] = {}
    program.observer = lambda weights, x, chosen: meant.update(
        {name: [x, *([] if chosen is None else [chosen])] for name in weights}
    )
    program.run([Piece(program.open_sequence(), ids, wants="all")])
    assert seen.keys() == meant.keys()
    for name, wanted in meant.items():
        for a, b in zip(seen[name], wanted, strict=True):
            assert nmse(a, b) < NATIVE_F32, name


def test_an_unchecked_graph_is_refused() -> None:
    small = small_model("llama", np.random.default_rng(2))
    with pytest.raises(UnsupportedError, match="use backend reference"):
        NativeBackend().open(small.graph(), small.arrays, Options(unchecked=True))
