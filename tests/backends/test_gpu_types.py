"""Every type of weights that the kernels read, against NumPy's definition; and what the others become."""

from __future__ import annotations

import numpy as np
import pytest

from gpu import WITH_GPUS, needs_triton
from loragraft.archs.graphs import build_graph
from loragraft.backends.program import Backend
from loragraft.backends.reference import ReferenceBackend
from loragraft.backends.webgpu.shaders import octets
from loragraft.errors import UnsupportedError
from loragraft.formats.source import TensorSource
from loragraft.graph.build import GraphBuilder
from loragraft.graph.ops import TensorFact
from loragraft.quants import reference
from loragraft.quants.types import BY_NAME
from quantized import Quantized
from running import EXACT, logits_of
from small_models import small_model
from tolerances import nmse

ON_GPUS = pytest.mark.parametrize(("backend", "tolerance"), WITH_GPUS)
TYPES = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4", "NVFP4")
COLUMNS = 768
IDS = np.array([4, 0, 6, 1, 1, 5, 2, 3, 4, 0, 2], np.int32)


def table(kind: str, rows: int = 7) -> Quantized:
    """Rows from ordinary to so small that their scales are subnormal numbers."""
    values = np.random.default_rng(3).normal(0, 1, (rows, COLUMNS)).astype(np.float32)
    return Quantized(
        "token_embd.weight", values * np.logspace(0, -6, rows, dtype=np.float32)[:, None], BY_NAME[kind]
    )


def test_these_are_all() -> None:
    assert set(octets()) == set(TYPES)


@needs_triton
def test_these_are_all_of_triton() -> None:
    from loragraft.backends.triton.kernels.blocks import PLANES

    assert set(PLANES) == set(TYPES)


@ON_GPUS
@pytest.mark.parametrize("kind", TYPES)
def test_weights_are_dequantized_exactly(backend: Backend, tolerance: float, kind: str) -> None:
    weight = table(kind)
    g = GraphBuilder("test", {weight.name: TensorFact(weight.shape, kind)})
    graph = g.finish(g.embed(g.tokens()))
    expected = reference.dequantize(weight.rows(0, 7), weight.type)[IDS]
    np.testing.assert_array_equal(logits_of(backend, graph, {weight.name: weight}, IDS), expected)


@ON_GPUS
@pytest.mark.parametrize("kind", [*TYPES, "Q4_1", "IQ2_XXS"])
@pytest.mark.parametrize("rows", [1, 3, 11])
def test_products(backend: Backend, tolerance: float, kind: str, rows: int) -> None:
    """Of one row, and of as many as take the other kernel; 13 outputs are not a whole number of workgroups."""
    rng = np.random.default_rng(4)
    weight = Quantized("output.weight", rng.normal(0, 1, (13, COLUMNS)).astype(np.float32), BY_NAME[kind])
    x = rng.normal(0, 1, (7, COLUMNS)).astype(np.float32)
    weights: dict[str, TensorSource | np.ndarray] = {"token_embd.weight": x, "output.weight": weight}
    g = GraphBuilder("test", {name: TensorFact(w.shape, "F32") for name, w in weights.items()})
    graph = g.finish(g.linear(g.embed(g.tokens()), "output"))
    program = backend.prepare(graph, weights, EXACT)
    expected = x.astype(np.float64)[IDS[:rows]] @ reference.dequantize(weight.rows(0, 13), weight.type).T
    found = logits_of(backend, graph, weights, IDS[:rows])
    known = kind in TYPES
    assert program.notes == ([] if known else [f"1 weight of type {kind}: kept as F16 on the GPU"])
    assert nmse(found, expected) < (
        tolerance if known else 1e-6
    )  # rounded to F16: each by up to 2^-12 of itself


@ON_GPUS
def test_rows_of_any_number_of_bytes(backend: Backend, tolerance: float) -> None:
    """F16 rows of 13 columns begin within words, and end within octets."""
    rng = np.random.default_rng(5)
    x = rng.normal(0, 1, (7, 13)).astype(np.float32)
    weight = Quantized("output.weight", rng.normal(0, 1, (5, 13)).astype(np.float32), BY_NAME["F16"])
    g = GraphBuilder(
        "test", {"token_embd.weight": TensorFact((7, 13), "F32"), "output.weight": TensorFact((5, 13), "F16")}
    )
    graph = g.finish(g.linear(g.embed(g.tokens()), "output"))
    weights = {"token_embd.weight": x, "output.weight": weight}
    expected = x[IDS].astype(np.float64) @ reference.dequantize(weight.rows(0, 5), weight.type).T
    assert nmse(logits_of(backend, graph, weights, IDS), expected) < tolerance


@ON_GPUS
def test_weights_beyond_f16_are_refused(backend: Backend, tolerance: float) -> None:
    """Q4_1's largest code times its scale can be."""
    weight = table("Q4_1")
    blocks = weight.rows(0, 7).copy().reshape(-1, 20)
    blocks[:, :2], blocks[:, 4:] = np.frombuffer(np.float16(60000).tobytes(), np.uint8), 0xFF
    weight._rows = blocks.reshape(7, -1)
    g = GraphBuilder("test", {weight.name: TensorFact(weight.shape, "Q4_1")})
    graph = g.finish(g.embed(g.tokens()))
    with pytest.raises(UnsupportedError, match=r"token_embd\.weight: of type Q4_1, which .* found 9\d+"):
        backend.prepare(graph, {weight.name: weight})


@ON_GPUS
@pytest.mark.parametrize("kind", ["NVFP4", "MXFP4", "Q8_0"])
def test_experts_of_quantized_weights(backend: Backend, tolerance: float, kind: str) -> None:
    small = small_model("qwen3moe", np.random.default_rng(6), layers=2)
    weights: dict[str, TensorSource | np.ndarray] = {
        name: Quantized(name, array, BY_NAME[kind])
        if "_exps" in name and array.shape[-1] % BY_NAME[kind].block == 0
        else array
        for name, array in small.arrays.items()
    }
    graph = build_graph(small.metadata, {n: TensorFact(w.shape, "F32") for n, w in weights.items()})
    expected = logits_of(ReferenceBackend(), graph, weights, IDS)
    assert nmse(logits_of(backend, graph, weights, IDS), expected) < tolerance
