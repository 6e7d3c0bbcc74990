"""Gradients through a graph: against differences of the reference backend's values, for every architecture."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import loragraft as lg
from archs.test_hf_configs import write
from hf_configs import VOCABULARY
from loragraft.backends import gradients, recurrent_gradients
from loragraft.backends.batch import Piece
from loragraft.backends.gradients import Tape, missing
from loragraft.backends.program import Options
from loragraft.backends.recurrent_gradients import Scan
from loragraft.backends.reference import ReferenceBackend, dequantized
from loragraft.graph.build import GraphBuilder
from loragraft.graph.ops import Graph, Node, Op, TensorFact
from loragraft.graph.slices import slice_graph
from small_models import KV_HEADS, LAYERS, VOCAB, small_model

WINDOWS, LENGTH = 2, 7


@pytest.mark.parametrize("name", list(LAYERS))
def test_the_gradients_are_those_of_the_model(name: str) -> None:
    rng = np.random.default_rng(5)
    model = small_model(name, rng, layers=2)
    gradients_hold(model.graph(), model.arrays, rng, VOCAB)


def test_only_adapters_have_no_way_back() -> None:
    """Which are merged before anything is differentiated."""
    adapters = {Op.LORA, Op.EMBED_LORA, Op.EXPERTS_LORA, Op.EXPERTS_DORA_SCALE}
    assert set(Op) - set(gradients._BACKWARD) == adapters


@pytest.mark.parametrize("name", ["llama", "starcoder2", "gemma3", "llama/fused"])
def test_what_attention_mixes_makes_the_gradient_of_the_values_weight(name: str) -> None:
    """That of W_v, summed over positions as they are, is that of the heads that share its rows, summed over positions
    as these mix them. Where values come of one product with queries and keys, nothing is told of them."""
    rng = np.random.default_rng(5)
    model = small_model(name, rng, layers=2)
    tape = Tape(model.graph(), model.arrays, WINDOWS, LENGTH)
    logits = tape.forward(rng.integers(0, VOCAB, (WINDOWS, LENGTH)).astype(np.int32), None)
    plain: dict[str, Any] = {}
    mixed: dict[str, Any] = {}

    def attended(weight: str, x: Any, g: Any, weights: Any) -> None:
        heads = np.einsum("whti,whtc->hic", g, weights @ x[:, None])
        mixed[weight] = heads.reshape(KV_HEADS, -1, *heads.shape[1:]).sum(axis=1).reshape(-1, x.shape[-1])

    gradient = rng.standard_normal(logits.shape).astype(np.float32)
    tape.backward(gradient, lambda weight, x, g, ids: plain.update({weight: g.T @ x}), attended)
    assert len(mixed) == (0 if name == "llama/fused" else 2)
    for weight, found in mixed.items():
        assert weight.endswith("attn_v.weight")
        assert np.allclose(found, plain[weight], rtol=1e-3, atol=1e-4 * np.abs(plain[weight]).max())


def test_the_gradients_of_what_the_models_sizes_are_matched_by() -> None:
    """AltUp's and the activations' cut, which no model that is cut by layers has."""
    rng = np.random.default_rng(7)
    shapes = {"token_embd": (VOCAB, 12), "a": (24, 12), "b": (24, 24), "c": (8, 12), "output": (VOCAB, 24)}
    arrays = {f"{name}.weight": rng.standard_normal(shape, np.float32) / 3 for name, shape in shapes.items()}
    arrays["scale.weight"] = rng.standard_normal(24, np.float32)
    g = GraphBuilder("test", {name: TensorFact(array.shape, "F32") for name, array in arrays.items()})
    x = g.embed(g.tokens())
    g.cut(x)
    cut = g.add(Op.GAUSSIAN_TOP_K, (g.linear(x, "a"),), label="cut", deviations=0.5)
    scaled = g.add(Op.CHANNEL_SCALE, (cut,), ("scale.weight",), "scaled")
    parts = g.heads(g.linear(scaled, "b"), 2, "parts")
    matched = g.add(Op.MATCH_RMS, (parts, g.linear(x, "c")), label="match", least=1e-5)
    last = g.add(Op.LAST, (g.flat(matched, "flat"),), label="last")
    gradients_hold(g.finish(g.linear(last, "output")), arrays, rng, VOCAB, 3e-4)


def test_the_gradients_of_sparse_mixer() -> None:
    """Where all logits are near the best: in random models nearly none is."""
    rng = np.random.default_rng(11)
    shapes = {"token_embd": (VOCAB, 12), "a": (6, 12), "output": (VOCAB, 2)}
    arrays = {f"{name}.weight": rng.standard_normal(shape, np.float32) / 3 for name, shape in shapes.items()}
    g = GraphBuilder("test", {name: TensorFact(array.shape, "F32") for name, array in arrays.items()})
    x = g.embed(g.tokens())
    g.cut(x)
    logits = g.add(Op.SHIFT, (g.linear(x, "a"),), label="near", value=200.0)
    ids = g.add(Op.TOP_K, (logits,), label="top", k=2)
    at = {"gating": "sparse_mixer", "normalize": False, "scale": 1.5, "margin": 0.02}
    route = g.add(Op.ROUTE, (logits, ids), label="route", **at)
    last = g.add(Op.LAST, (route,), label="last")
    gradients_hold(g.finish(g.linear(last, "output")), arrays, rng, VOCAB, 3e-4)


RECURRENT = ["lfm2-bias", "qwen3_5", "granitehybrid", "nemotron_h"]


@pytest.mark.parametrize("case", ["bloom", "deepseek3", "apertus", *RECURRENT])
def test_the_gradients_of_a_checkpoint(tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose nodes the small models do not have."""
    monkeypatch.setattr(recurrent_gradients, "CHUNK", 3)
    model = lg.load(write(tmp_path / "m", case), backend="reference")
    arrays = {name: dequantized(tensor) for name, tensor in model.source.tensors.items()}
    # Recurrent layers bend more.
    size = 5e-4 if case in RECURRENT else 3e-3
    gradients_hold(model.graph, arrays, np.random.default_rng(5), VOCABULARY, size)


@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("delta", [False, True])
def test_a_scan_and_its_gradients_in_float64(
    delta: bool, tiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Token by token it is what its module says; chunks of 4, the last of 3, change nothing."""
    monkeypatch.setattr(recurrent_gradients, "CHUNK", 4)
    rng, windows, length, heads, groups, key, value = np.random.default_rng(6), 2, 11, 4, 2, 3, 5
    sizes = {"heads": heads, "key_heads": groups, "key_dim": key, "value_dim": value, "tiled": tiled}
    rows = windows * length
    q, k = (rng.standard_normal((rows, groups * key)) / 2 for _ in range(2))
    v, rate = rng.standard_normal((rows, heads * value)), rng.uniform(0.2, 0.9, (rows, heads))
    inputs: list[Any] = [q, k, v, rate, -rng.uniform(0.02, 1.0, (rows, heads))]

    def scan(inputs: list[Any]) -> Scan:
        return Scan(Node(Op.GATED_DELTA, attrs=sizes), windows, *inputs, delta=delta)

    y = scan(inputs).forward()
    expected = np.empty((rows, heads, value))
    for window in range(windows):
        for head in range(heads):
            group = head % groups if tiled else head // (heads // groups)
            state = np.zeros((key, value))
            for t in range(window * length, (window + 1) * length):
                own_q, own_k = (a[t].reshape(groups, key)[group] for a in (q, k))
                own_v = v[t].reshape(heads, value)[head]
                state = state * np.exp(inputs[4][t, head])
                known = own_k @ state if delta else 0.0
                state = state + np.outer(own_k, rate[t, head] * (own_v - known))
                expected[t, head] = own_q @ state
    np.testing.assert_allclose(y, expected.reshape(y.shape), rtol=1e-10, atol=1e-12)
    aim = rng.standard_normal(y.shape)
    found: Any = scan(inputs).backward(aim)  # type: ignore[arg-type]
    for place, gradient in enumerate(found):
        step = 1e-5 * rng.standard_normal(gradient.shape)
        up, down = (
            scan([a + sign * step if i == place else a for i, a in enumerate(inputs)]).forward()
            for sign in (1, -1)
        )
        assert ((up - down) * aim).sum() == pytest.approx(2 * (step * gradient).sum(), rel=1e-6)


def gradients_hold(
    graph: Graph, arrays: dict[str, np.ndarray], rng: np.random.Generator, vocabulary: int, size: float = 3e-3
) -> None:
    """A product's weight is moved along the gradient that its inputs and its outputs' gradients make, in float64's
    stead by a step of `size`, which float32 resolves: the loss must change by what the gradient says."""
    assert missing(graph) is None
    tokens = rng.integers(0, vocabulary, (WINDOWS, LENGTH)).astype(np.int32)
    aim = rng.standard_normal((WINDOWS * LENGTH, vocabulary)).astype(np.float32)

    def loss(arrays: dict[str, np.ndarray]) -> float:
        program = ReferenceBackend().prepare(graph, arrays, Options(activations="f32"))
        pieces = [Piece(program.open_sequence(), window, wants="all") for window in tokens]
        return float((program.run(pieces).astype(np.float64) * aim).sum())

    found: dict[str, np.ndarray] = {}

    def see(weight: str, x: np.ndarray, g: np.ndarray, ids: np.ndarray | None) -> None:
        if ids is None:
            found[weight] = g.T @ x
            return
        found[weight] = np.zeros_like(arrays[weight])
        for token, place in np.ndindex(ids.shape):
            row = x[token, place] if x.ndim == 3 else x[token]
            found[weight][ids[token, place]] += np.outer(g[token, place], row)

    hidden, tapes = None, []
    parts = [slice_graph(graph, i, j) for i, j in pairwise([*range(len(graph.cuts)), None])]  # type: ignore[list-item]
    for part in parts:
        tape = Tape(part, arrays, WINDOWS, LENGTH)
        hidden = tape.forward(tokens, hidden)
        tapes.append(tape)
    assert float((hidden.astype(np.float64) * aim).sum()) == pytest.approx(loss(arrays), rel=1e-4)
    gradient = aim
    for tape in reversed(tapes):
        values = tape.values
        tape.prepare(tokens, None if tape.graph.nodes[0].op is not Op.HIDDEN else values[0])
        whole, short = [], []
        full = Tape(tape.graph, arrays, WINDOWS, LENGTH)
        full.forward(tokens, None if tape.graph.nodes[0].op is not Op.HIDDEN else values[0])
        full.backward(gradient, lambda weight, x, g, ids, to=whole: to.append(g))
        gradient = tape.backward(gradient, lambda *seen, to=short: (see(*seen), to.append(seen[2])))
        assert all(np.array_equal(a, b) for a, b in zip(whole, short, strict=True))
        assert any(value is None for value in tape.values)  # the last product is not needed
    assert gradient is None
    products = [n.weights[0] for n in graph.nodes if n.op in (Op.MATMUL, Op.EXPERTS_MATMUL)]
    assert set(found) == set(products)
    looked_up = {n.weights[0] for n in graph.nodes if n.op is Op.EMBED}
    for weight in set(products) - looked_up:  # an output that is the embedding too moves the loss twice
        whole = found[weight].reshape(arrays[weight].shape)
        step = size * whole / np.linalg.norm(whole)
        up, down = (
            loss({**arrays, weight: (arrays[weight] + sign * step).astype(np.float32)}) for sign in (1, -1)
        )
        expected = 2 * size * float(np.linalg.norm(whole))
        assert up - down == pytest.approx(expected, rel=0.02), weight
