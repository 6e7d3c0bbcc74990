"""The native backend against transformers and peft, on every architecture, float and NVFP4, with and without adapters;
and against the reference backend in every type."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from golden_logits import FLOAT_CASES, NVFP4_CASES
from loragraft.archs.graphs import build_graph, tensor_facts
from loragraft.backends.batch import Piece
from loragraft.backends.cpu.program import NativeBackend
from loragraft.backends.program import Options, Program, Weights
from loragraft.backends.reference import ReferenceBackend
from loragraft.errors import UnsupportedError
from loragraft.formats.gguf.values import Value
from loragraft.graph.lora import attach
from loragraft.opening import load_adapter, open_model
from loragraft.quants import native
from loragraft.quants.types import BY_NAME, QuantType
from paths import arrays, data
from quantized import Quantized
from running import EXACT, all_logits, logits_of
from small_models import small_model
from tolerances import (
    KEYS_VALUES_F16,
    KEYS_VALUES_Q8_0,
    NATIVE_F32,
    NATIVE_NVFP4,
    NATIVE_Q8,
    REFERENCE_F16_MERGE,
    nmse,
)


def prepared(model: str, adapter: str | None, options: Options = EXACT) -> Program:
    source = open_model(data(model))
    graph = build_graph(source.metadata, tensor_facts(source.tensors))
    weights: Weights = source.tensors
    if adapter is not None:
        graph, extra = attach(graph, [(load_adapter(data(adapter), source), 1.0)], source.tensors)
        weights = {**weights, **extra}
    return NativeBackend().prepare(graph, weights, options)


def golden(file: str, case: str) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    ids = arrays("golden/hf-logits.npz")["ids"].astype(np.int32)
    return ids, arrays(f"golden/{file}.npz")[case]


@pytest.mark.parametrize(("model", "adapter", "case"), FLOAT_CASES, ids=[case for *_, case in FLOAT_CASES])
def test_float_models(model: str, adapter: str | None, case: str) -> None:
    ids, wanted = golden("hf-logits", case)
    program = prepared(model, adapter)
    assert nmse(all_logits(program, ids), wanted) < NATIVE_F32
    assert nmse(all_logits(program, ids, range(1, len(ids))), wanted) < NATIVE_F32


@pytest.mark.parametrize(("model", "adapter", "case"), FLOAT_CASES, ids=[case for *_, case in FLOAT_CASES])
def test_an_adapter_in_its_slot(model: str, adapter: str | None, case: str) -> None:
    """Given to the program after it was prepared, beside rows without it and with half of it."""
    ids, wanted = golden("hf-logits", case)
    source = open_model(data(model))
    program = NativeBackend().prepare(
        build_graph(source.metadata, tensor_facts(source.tensors)), source.tensors, EXACT
    )
    chosen = []
    if adapter is not None:
        chosen = [(program.add_adapter(load_adapter(data(adapter), source)), 1.0)]
    pieces = [
        Piece(program.open_sequence(), ids, adapters, wants="all")
        for adapters in ((), tuple(chosen), tuple((slot, 0.5) for slot, _ in chosen))
    ]
    assert nmse(np.split(program.run(pieces), 3)[1], wanted) < NATIVE_F32


@pytest.mark.parametrize(("kept", "tolerance"), [("f16", KEYS_VALUES_F16), ("q8_0", KEYS_VALUES_Q8_0)])
def test_rounded_keys_and_values(kept: str, tolerance: float) -> None:
    ids, wanted = golden("hf-logits", "llama")
    found = all_logits(prepared("llama-kjv", None, Options(keys_values=kept)), ids)  # type: ignore[arg-type]
    assert 0 < nmse(found, wanted) < tolerance


def test_a_merged_file() -> None:
    ids, wanted = golden("hf-logits", "llama+lora")
    program = prepared("gguf/llama-kjv.merged-f16.gguf", None)
    assert nmse(all_logits(program, ids), wanted) < REFERENCE_F16_MERGE


@pytest.mark.parametrize(
    ("activations", "tolerance"), [("f32", NATIVE_F32), ("q8", NATIVE_Q8), ("nvfp4", NATIVE_NVFP4)]
)
@pytest.mark.parametrize(("model", "adapter", "case"), NVFP4_CASES, ids=[case for *_, case in NVFP4_CASES])
def test_modelopt_checkpoints(
    model: str, adapter: str | None, case: str, activations: str, tolerance: float
) -> None:
    ids, wanted = golden("hf-logits-modelopt-nvfp4", case)
    program = prepared(model, adapter, Options(activations=activations, keys_values="f32"))
    assert nmse(all_logits(program, ids), wanted) < tolerance


def test_8_bits_is_what_auto_means() -> None:
    ids, _ = golden("hf-logits", "llama")
    logits = [
        all_logits(prepared("llama-kjv-nvfp4", None, options), ids)
        for options in (Options(), Options(activations="q8"))
    ]
    assert np.array_equal(*logits)


def test_threads_do_not_change_a_bit() -> None:
    ids, _ = golden("hf-logits", "llama")
    one, two, three = (
        all_logits(prepared("qwen3moe-8x-nvfp4", "qwen3moe-8x.experts", Options(threads=n)), ids)
        for n in (1, 2, 3)
    )
    assert np.array_equal(one, two)
    assert np.array_equal(one, three)


TYPES = [kind for kind in BY_NAME.values() if native.supports(kind)]


@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_whole_models_in_every_type(kind: QuantType) -> None:
    """One sequence fed 7, 64 and 1 tokens; every linear of the first layer and the embedding in the type, or as it was
    where its rows are no whole number of blocks. What the reference computes from the same rows is the truth."""
    source = open_model(data("gguf/llama-kjv.merged-f16.gguf"))
    weights = {
        name: Quantized.of(tensor, kind)
        if ("blk.0." in name or name == "token_embd.weight")
        and len(tensor.shape) == 2
        and tensor.columns % kind.block == 0
        else tensor
        for name, tensor in source.tensors.items()
    }
    assert any(tensor.type is kind for tensor in weights.values())
    graph = build_graph(source.metadata, tensor_facts(weights))
    ids = np.random.default_rng(1).integers(0, 2000, 72).astype(np.int32)
    wanted = logits_of(ReferenceBackend(), graph, weights, ids)
    for activations, tolerance in (("f32", NATIVE_F32), ("q8", NATIVE_Q8)):
        options = Options(activations=activations, keys_values="f32")  # type: ignore[arg-type]
        found = all_logits(NativeBackend().prepare(graph, weights, options), ids, [7, 71])
        assert nmse(found, wanted) < tolerance, activations


@pytest.mark.parametrize("kind", ["Q4_K", "F16"])
@pytest.mark.parametrize(("activations", "copied"), [("q8", True), ("f32", False)])
def test_pages_of_copied_weights_are_given_back(activations: str, copied: bool, kind: str) -> None:
    source = open_model(data("gguf/llama-kjv.merged-f16.gguf"))
    weight = Quantized.of(source.tensors["blk.0.ffn_up.weight"], BY_NAME[kind])
    weights = {**source.tensors, weight.name: weight}
    graph = build_graph(source.metadata, tensor_facts(weights))
    NativeBackend().prepare(graph, weights, Options(activations=activations))  # type: ignore[arg-type]
    assert weight.released == (weight.n_rows if copied else 0)


def test_a_long_context_of_a_small_model() -> None:
    """More than a pass, and many pages of keys; with and without a window."""
    ids = np.random.default_rng(4).integers(0, 40, 1300).astype(np.int32)
    for window in (None, 100):
        small = small_model("qwen2", np.random.default_rng(2))
        if window:
            small.metadata["qwen2.attention.sliding_window"] = Value.u32(window)
        graph = small.graph()
        program = NativeBackend().prepare(graph, small.arrays, EXACT)
        found = all_logits(program, ids, [1000, 1001, 1290])
        assert nmse(found, logits_of(ReferenceBackend(), graph, small.arrays, ids)) < NATIVE_F32, window


def test_a_prompt_longer_than_a_pass() -> None:
    ids, _ = golden("hf-logits", "llama")
    long = np.tile(ids, 12)  # 576 tokens: two passes
    program = prepared("llama-kjv", None)
    whole = all_logits(program, long)
    assert nmse(all_logits(program, long, [100, 300]), whole) < NATIVE_F32
    for wants, rows in (("last", whole[-1:]), (550, whole[550:]), (500, whole[500:]), ("none", whole[:0])):
        sequence = program.open_sequence()
        found = program.run([Piece(sequence, long, wants=wants)])  # type: ignore[arg-type]
        assert found.shape == rows.shape
        assert np.allclose(found, rows, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model", ["gguf/llama-kjv.merged-f16.gguf", "gguf/qwen3moe-8x-f16.gguf"])
def test_an_observer_sees_what_meets_the_weights(model: str) -> None:
    source = open_model(data(model))
    graph = build_graph(source.metadata, tensor_facts(source.tensors))
    native = NativeBackend().prepare(graph, source.tensors, EXACT)
    ids = np.random.default_rng(1).integers(0, 2000, 40).astype(np.int32)
    seen: dict[str, list[npt.NDArray[Any]]] = {}
    native.observer = lambda weights, x, chosen: seen.update(
        {name: [x.copy(), *([] if chosen is None else [chosen.copy()])] for name in weights}
    )
    all_logits(native, ids)
    program = ReferenceBackend().prepare(graph, source.tensors)
    meant: dict[str, list[npt.NDArray[Any]]] = {}
    program.observer = lambda weights, x, chosen: meant.update(
        {name: [x, *([] if chosen is None else [chosen])] for name in weights}
    )
    all_logits(program, ids)
    assert seen.keys() == meant.keys()
    for name, wanted in meant.items():
        for a, b in zip(seen[name], wanted, strict=True):
            assert nmse(a, b) < NATIVE_F32, name


def test_an_unchecked_graph_is_refused() -> None:
    small = small_model("llama", np.random.default_rng(2))
    with pytest.raises(UnsupportedError, match="use backend reference"):
        NativeBackend().prepare(small.graph(), small.arrays, Options(unchecked=True))
