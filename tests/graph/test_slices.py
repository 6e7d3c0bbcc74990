"""Slices: a model cut into layers computes what it computes whole, under the same law."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from loragraft.arrays import Floats
from loragraft.backends.batch import Piece
from loragraft.backends.reference import ReferenceBackend
from loragraft.errors import AdapterError, GraphError
from loragraft.graph.build import GraphBuilder
from loragraft.graph.lora import attach
from loragraft.graph.ops import Graph, Op, TensorFact
from loragraft.graph.slices import slice_graph
from loragraft.graph.spec import value_shapes, verify, violations
from small_models import LAYERS, WIDTH, SmallModel, linears, random_adapter, small_model

IDS = np.array([3, 17, 39, 0, 17, 5], dtype=np.int32)


def adapted(model: str, *, tied: bool = False) -> tuple[SmallModel, Graph, dict[str, Floats]]:
    """Three layers with scales, biases and an adapter on every linear."""
    rng = np.random.default_rng(7)
    every = [base for layer in range(3) for base in linears(model, layer=layer, tied=tied)]
    biased = tuple(base for base in every if base != "token_embd")
    small = small_model(model, rng, layers=3, tied=tied, biased=biased, scaled=tuple(every))
    shapes = {base: shape for layer in range(3) for base, shape in linears(model, layer=layer).items()}
    graph, tensors = attach(small.graph(), [(random_adapter(rng, shapes), 1.0)], small.arrays)
    return small, graph, small.arrays | tensors


def values(graph: Graph, weights: dict[str, Floats], hidden: Floats | None = None) -> Floats:
    program = ReferenceBackend().prepare(graph, {name: weights[name] for name in graph.tensors})
    piece = Piece(program.open_sequence(), IDS, wants=4)
    return program.run([piece], hidden)


@pytest.mark.parametrize("model", LAYERS)
@pytest.mark.parametrize("tied", [False, True])
def test_slices_one_after_another_are_the_whole(model: str, tied: bool) -> None:
    _, graph, weights = adapted(model, tied=tied)
    verify(graph)
    assert len(graph.cuts) == 4
    whole = values(graph, weights)
    assert whole.shape == (2, 40)
    hidden = None
    for layer in range(3):
        part = slice_graph(graph, layer, layer + 1)
        verify(part)
        assert all(f"blk.{layer}." in name or name.startswith("token_embd") for name in part.tensors)
        hidden = values(part, weights, hidden)
        assert hidden.shape == (len(IDS), WIDTH)
        assert np.array_equal(hidden, values(slice_graph(graph, 0, layer + 1), weights))
        assert np.array_equal(values(slice_graph(graph, layer + 1), weights, hidden), whole)


def test_a_slice_of_everything_is_the_graph() -> None:
    _, graph, _ = adapted("llama")
    assert replace(slice_graph(graph), unused=graph.unused) == graph


def test_a_slice_can_be_cut_again() -> None:
    _, graph, weights = adapted("qwen3moe")
    hidden = values(slice_graph(graph, 0, 1), weights)
    two = slice_graph(graph, 1, 3)
    assert len(two.cuts) == 3
    for a, b in ((0, 1), (1, 2)):
        hidden = values(slice_graph(two, a, b), weights, hidden)
    assert np.array_equal(hidden, values(slice_graph(graph, 0, 3), weights))
    assert slice_graph(two, 0, 2).elsewhere == two.elsewhere


def test_the_law_holds_in_slices() -> None:
    """A scale that the graph forgets is missed in the slice too."""
    _, graph, _ = adapted("llama")
    index = next(i for i, node in enumerate(graph.nodes) if node.op is Op.WEIGHT_SCALE)
    base = graph.nodes[index].label
    nodes = [
        replace(node, inputs=tuple(index - 1 if source == index else source for source in node.inputs))
        for node in graph.nodes
    ]
    part = slice_graph(replace(graph, nodes=tuple(nodes)), 0, 1)
    assert [str(error).split(":")[0] for error in violations(part)] == [f"{base}.weight", f"{base}.scale"]


def test_an_adapter_of_the_whole_model_is_put_on_a_slice() -> None:
    rng = np.random.default_rng(3)
    small = small_model("llama", rng, layers=2)
    shapes = linears("llama", layer=0) | linears("llama", layer=1)
    adapter = random_adapter(rng, shapes)
    part = slice_graph(small.graph(), 1, 2)
    attached, tensors = attach(part, [(adapter, 1.0)], small.arrays)
    verify(attached)
    assert len(tensors) == 2 * 7
    strange = replace(adapter, pairs=random_adapter(rng, {"blk.7.attn_q": (32, 32)}).pairs)
    with pytest.raises(AdapterError, match=r"blk.7.attn_q.weight, which is not a linear layer"):
        attach(part, [(strange, 1.0)], small.arrays)


def crossing() -> Graph:
    """The first layer's value is added once more in the second."""
    g = GraphBuilder("x", {"token_embd.weight": TensorFact((5, 4), "F32"), **_square("a"), **_square("b")})
    x = g.embed(g.tokens())
    y = g.add(Op.ADD, (x, g.linear(x, "a")))
    z = g.add(Op.ADD, (x, g.linear(y, "b")))
    for value in (x, y, z):
        g.cut(value)
    return g.finish(g.linear(z, "output", weight_of="token_embd"))


def _square(base: str) -> dict[str, TensorFact]:
    return {f"{base}.weight": TensorFact((4, 4), "F32")}


def test_what_else_crosses_a_cut_is_refused() -> None:
    graph = crossing()
    verify(graph)
    assert value_shapes(graph)[graph.output] == (5,)
    verify(slice_graph(graph, 0, 2))
    with pytest.raises(
        GraphError, match="token_embd: its value crosses the cut; only the residual stream may"
    ):
        slice_graph(graph, 1, 2)


@pytest.mark.parametrize(("first", "last"), [(-1, None), (3, None), (1, 1), (2, 1), (0, 3)])
def test_slices_that_are_not_there(first: int, last: int | None) -> None:
    with pytest.raises(GraphError, match="no such slice"):
        slice_graph(crossing(), first, last)


def test_rows_before_and_after_the_last_layer_do_not_mix() -> None:
    g = GraphBuilder("x", {"token_embd.weight": TensorFact((5, 4), "F32"), **_square("a")})
    x = g.embed(g.tokens())
    few = g.add(Op.LAST, (g.linear(x, "a"),), label="last")
    graph = g.finish(g.linear(g.add(Op.ADD, (few, x), label="sum"), "output", weight_of="token_embd"))
    with pytest.raises(GraphError, match=r"sum \(add, node 4\): works on all rows: found a value after LAST"):
        verify(graph)
