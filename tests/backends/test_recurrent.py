"""Layers with a state of fixed size: the short convolution, the gated delta rule and Mamba-2's scan, against float64
and, to the bit, against themselves in other batches."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from gpu import GPU, WITH_GPUS
from loragraft.arrays import Floats
from loragraft.backends.batch import Piece
from loragraft.backends.cpu.program import NativeBackend
from loragraft.backends.program import Backend, Options, Program
from loragraft.backends.reference import ReferenceBackend
from loragraft.errors import GraphError, PoolError
from loragraft.graph.build import GraphBuilder
from loragraft.graph.ops import Graph, Node, Op, TensorFact
from loragraft.graph.spec import verify
from recurrent_model import HEADS, KEY, KEY_HEADS, KINDS, TAPS, VALUE, Q, V, ids_of, model, weights
from tolerances import NATIVE_F32, REFERENCE, nmse

TOLERANCES: list[tuple[Backend, float]] = [
    (ReferenceBackend(), REFERENCE),
    (NativeBackend(), NATIVE_F32),
    *GPU,
]
BACKENDS = [backend for backend, _ in TOLERANCES]


def exact(kind: str, ids: npt.NDArray[np.int32]) -> npt.NDArray[np.float64]:
    """The same in float64, from the papers' formulas, one head after the other."""
    w = {name: a.astype(np.float64) for name, a in weights().items()}
    x = w["token_embd.weight"][ids]
    rows, gates = x @ w["blk.0.qkv.weight"].T, x @ w["blk.0.gates.weight"].T
    padded = np.concatenate([np.zeros((TAPS - 1, rows.shape[1])), rows])
    conv = np.stack([(padded[t : t + TAPS] * w["blk.0.conv.weight"].T).sum(0) for t in range(len(ids))])
    conv += w["blk.0.conv.bias"]
    q, k = (conv[:, i * Q : (i + 1) * Q].reshape(-1, KEY_HEADS, KEY) for i in range(2))
    q, k = (a / np.sqrt((a * a).sum(-1, keepdims=True) + 7e-6) for a in (q, k))
    v = conv[:, 2 * Q :].reshape(-1, HEADS, VALUE)
    dt = np.clip(np.log1p(np.exp(gates[:, ::2] + w["blk.0.dt.bias"])), 0.1, 2.5)
    beta = 1 / (1 + np.exp(-gates[:, 1::2]))
    y = np.empty_like(v)
    if kind == "space":
        dt = dt + beta
    for head in range(HEADS):
        key = head % KEY_HEADS if kind == "delta/tiled" else head // (HEADS // KEY_HEADS)
        state = np.zeros((KEY, VALUE))
        for t in range(len(ids)):
            state *= np.exp(w["blk.0.a"][head] * dt[t, head])
            if kind == "space":
                state += np.outer(k[t, key], dt[t, head] * v[t, head])
            else:
                state += np.outer(k[t, key], beta[t, head] * (v[t, head] - state.T @ k[t, key]))
            y[t, head] = state.T @ q[t, key]
            if kind == "space":
                y[t, head] += w["blk.0.d"][head] * v[t, head]
    return y.reshape(len(ids), -1) @ w["output.weight"].T


@cache
def prepared(backend: Backend, kind: str, threads: int = 1) -> Program:
    return backend.prepare(*model(kind), Options(threads=threads))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("backend", "tolerance"), TOLERANCES, ids=[backend.name for backend in BACKENDS])
def test_against_float64(backend: Backend, tolerance: float, kind: str) -> None:
    program, ids = prepared(backend, kind), ids_of(70)
    assert nmse(alone(program, ids), exact(kind, ids)) < tolerance


@pytest.mark.parametrize(
    ("backend", "kind"),
    [
        pytest.param(backend, kind, id=f"{backend.name}-{kind}")
        for backend in BACKENDS
        for kind in KINDS
        if (backend.name, kind) != ("triton", "delta/tiled")  # its interpreter is slow
    ],
)
@settings(
    max_examples=8,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def test_any_pieces_in_any_company(backend: Backend, kind: str, data: st.DataObject) -> None:
    """Three sequences, of which one forks another: in pieces of any size, beside one another, with any number of
    threads they are what each is when it is read at once."""
    program = prepared(backend, kind, data.draw(st.sampled_from([1, 2, 3]), "threads"))
    texts = [ids_of(data.draw(st.integers(1, 30), "tokens"), seed) for seed in range(2)]
    whole = [alone(prepared(backend, kind), text) for text in texts]
    live: list[list[int]] = [[program.open_sequence(), text, 0] for text in range(2)]
    forks = 1
    while any(read < len(texts[text]) for _, text, read in live):
        pieces, of = [], []
        for one in live:
            number, text, read = one
            left = len(texts[text]) - read
            count = min(left, data.draw(st.integers(0, 9), "piece"))
            if count:
                pieces.append(Piece(number, texts[text][read : read + count], wants="all"))
                of.append((text, read, count))
                one[2] += count
        if not pieces:
            continue
        logits, at = program.run(pieces), 0
        for text, read, count in of:
            np.testing.assert_array_equal(logits[at : at + count], whole[text][read : read + count])
            at += count
        if forks and data.draw(st.booleans(), "fork"):
            forks -= 1
            number, text, read = live[0]
            live.append([program.fork_sequence(number), text, read])
    for number, _, _ in live:
        program.close_sequence(number)


def alone(program: Program, ids: npt.NDArray[np.int32]) -> Floats:
    """The logits of all rows, read at once."""
    return program.run([Piece(program.open_sequence(), ids, wants="all")])


@pytest.mark.parametrize("kind", ["delta", "space"])
@pytest.mark.parametrize(("backend", "tolerance"), WITH_GPUS)
def test_states_that_several_programs_share(backend: Backend, tolerance: float, kind: str) -> None:
    """A GPU's program takes 16 to 128 columns of a head's state."""
    ids = ids_of(7)
    expected = alone(BACKENDS[0].prepare(*model(kind, 150)), ids)
    program = backend.prepare(*model(kind, 150))
    sequence = program.open_sequence()
    found = [program.run([Piece(sequence, part, wants="all")]) for part in np.split(ids, [2, 3])]
    assert nmse(np.concatenate(found), expected) < tolerance


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_prompt_takes_several_passes(kind: str) -> None:
    """Of 512 rows; the state goes from one to the next."""
    program, ids = prepared(BACKENDS[1], kind), ids_of(700)
    whole = alone(program, ids)
    sequence = program.open_sequence()
    parts = [program.run([Piece(sequence, part, wants="all")]) for part in np.split(ids, [1, 300, 301])]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert nmse(whole, exact(kind, ids)) < NATIVE_F32


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
def test_a_sequence_goes_back_to_its_beginning_only(backend: Backend) -> None:
    program, ids = prepared(backend, "delta"), ids_of(9)
    assert not program.rewinds
    sequence = program.open_sequence()
    first = program.run([Piece(sequence, ids)])
    for cut in (program.truncate_sequence, program.fork_sequence):
        with pytest.raises(
            GraphError, match=r"cannot rewind: found 4, expected 0 or 9 tokens: recurrent layers"
        ):
            cut(sequence, 4)
    program.truncate_sequence(sequence, 9)
    fork = program.fork_sequence(sequence, 0)
    program.truncate_sequence(sequence, 0)
    for again in (sequence, fork):
        np.testing.assert_array_equal(program.run([Piece(again, ids)]), first)


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
def test_a_pass_that_fails_changes_no_state(backend: Backend) -> None:
    """Here the observer raises, at the last product."""
    program, ids = prepared(backend, "delta"), ids_of(12)
    sequence, judge = program.open_sequence(), program.open_sequence()
    for number in (sequence, judge):
        program.run([Piece(number, ids[:5])])

    def fails(names: tuple[str, ...], x: object, chosen: object) -> None:
        if "output.weight" in names:
            raise RuntimeError("stop")

    program.observer = fails
    with pytest.raises(RuntimeError, match="stop"):
        program.run([Piece(sequence, ids[5:9])])
    program.observer = None
    np.testing.assert_array_equal(
        program.run([Piece(sequence, ids[5:])]), program.run([Piece(judge, ids[5:])])
    )


def broken(op: Op, **changes: object) -> Graph:
    """The graph with other attributes of the node `op`."""
    graph, _ = model("space" if op is Op.STATE_SPACE else "delta")
    nodes = [
        Node(node.op, node.inputs, node.weights, {**node.attrs, **changes}, node.label)
        if node.op is op
        else node
        for node in graph.nodes
    ]
    return Graph(graph.arch, tuple(nodes), graph.output, graph.tensors)


@pytest.mark.parametrize(
    ("op", "changes", "message"),
    [
        (Op.GATED_DELTA, {"key_heads": 3}, "heads: found 4, expected a multiple of 3 key heads"),
        (Op.GATED_DELTA, {"key_dim": 8}, "width of queries and keys"),
        (Op.STATE_SPACE, {"value_dim": 8}, "width of the values"),
        (Op.TIME_STEP, {"low": 3.0}, "limits: found 3.0 to 2.5"),
        (Op.SPLIT, {"group": 23}, "elements of a group"),
    ],
)
def test_illegal_nodes(op: Op, changes: dict[str, object], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        verify(broken(op, **changes))


def test_a_state_is_of_one_node() -> None:
    tensors = weights()
    g = GraphBuilder("llama", {name: TensorFact(a.shape, "F32") for name, a in tensors.items()})
    x = g.linear(g.embed(g.tokens()), "blk.0.qkv")
    for _ in range(2):
        x = g.add(Op.SHORT_CONV, (x,), ("blk.0.conv.weight",), "blk.0.conv", layer=0)
    with pytest.raises(GraphError, match=r"two short_conv share a state: found layer 0"):
        verify(g.finish(x))


@pytest.mark.parametrize(("backend", "_"), WITH_GPUS)
def test_states_beyond_the_pool_are_refused_and_the_others_stay(backend: Backend, _: float) -> None:
    """On a GPU; the native engine's pool has tests of its own."""
    room = 4 * (HEADS * KEY * VALUE + (TAPS - 1) * (2 * Q + V)) * 3
    program = backend.prepare(*model("delta"), Options(pool_bytes=room))
    ids = ids_of(12)
    expected = alone(prepared(backend, "delta"), ids)[-1:]
    first, second = program.open_sequence(), program.open_sequence()
    for number in (first, second):
        program.run([Piece(number, ids[:5])])
    with pytest.raises(PoolError, match="no room"):
        program.run([Piece(number, ids[5:]) for number in (first, second)])
    np.testing.assert_array_equal(program.run([Piece(first, ids[5:])]), expected)
    program.close_sequence(second)
    fork = program.fork_sequence(first)
    with pytest.raises(PoolError, match="no room"):
        program.run([Piece(number, ids) for number in (first, fork, program.open_sequence())])
