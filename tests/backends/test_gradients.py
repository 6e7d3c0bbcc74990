"""The way back through a graph: against differences of the reference backend's values, for every architecture."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import loragraft as lg
from archs.test_hf_configs import write
from hf_configs import VOCABULARY
from loragraft.backends.batch import Piece
from loragraft.backends.gradients import Tape, missing
from loragraft.backends.program import Options
from loragraft.backends.reference import ReferenceBackend, dequantized
from loragraft.graph.ops import Graph, Op
from loragraft.graph.slices import slice_graph
from small_models import LAYERS, VOCAB, small_model

WINDOWS, LENGTH = 2, 7


@pytest.mark.parametrize("name", list(LAYERS))
def test_the_gradients_are_those_of_the_model(name: str) -> None:
    rng = np.random.default_rng(5)
    model = small_model(name, rng, layers=2)
    gradients_hold(model.graph(), model.arrays, rng, VOCAB)


@pytest.mark.parametrize("case", ["bloom", "deepseek3"])
def test_the_gradients_of_a_checkpoint(tmp_path: Path, case: str) -> None:
    """Whose nodes the small models do not have."""
    model = lg.load(write(tmp_path / "m", case), backend="reference")
    arrays = {name: dequantized(tensor) for name, tensor in model.source.tensors.items()}
    gradients_hold(model.graph, arrays, np.random.default_rng(5), VOCABULARY)


def gradients_hold(
    graph: Graph, arrays: dict[str, np.ndarray], rng: np.random.Generator, vocabulary: int
) -> None:
    """A product's weight is moved along the gradient that its inputs and its outputs' gradients make, in float64's
    stead by a step that float32 resolves: the loss must change by what the gradient says."""
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
        assert any(value is None for value in tape.values)  # the last product is not needed on the way back
    assert gradient is None
    products = [n.weights[0] for n in graph.nodes if n.op in (Op.MATMUL, Op.EXPERTS_MATMUL)]
    assert set(found) == set(products)
    for weight in products:
        whole = found[weight].reshape(arrays[weight].shape)
        step = 3e-3 * whole / np.linalg.norm(whole)
        up, down = (
            loss({**arrays, weight: (arrays[weight] + sign * step).astype(np.float32)}) for sign in (1, -1)
        )
        expected = 2 * 3e-3 * float(np.linalg.norm(whole))
        assert up - down == pytest.approx(expected, rel=0.02), weight
