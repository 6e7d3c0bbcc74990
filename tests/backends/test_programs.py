"""Programs of every backend: sequences, adapters by slot, what is wanted, what is refused."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import replace
from typing import cast

import numpy as np
import pytest

from gpu import GPU
from loragraft.backends.batch import Batch, Piece
from loragraft.backends.cpu.program import NativeBackend
from loragraft.backends.program import Backend, Options, Program
from loragraft.backends.reference import ReferenceBackend
from loragraft.errors import AdapterError, GraphError, LoragraftError, PoolError
from loragraft.formats.gguf.values import Value
from loragraft.graph.build import GraphBuilder
from loragraft.graph.lora import attach
from loragraft.graph.ops import Op, TensorFact
from loragraft.graph.slices import slice_graph
from running import EXACT, all_logits, logits_of
from small_models import WIDTH, linears, random_adapter, small_model
from tolerances import REFERENCE, nmse

IDS = np.array([3, 17, 39, 0, 17, 5, 21, 8], dtype=np.int32)
BACKENDS = [ReferenceBackend(), NativeBackend(), *(backend for backend, _ in GPU)]


@pytest.fixture(params=BACKENDS, ids=lambda backend: backend.name)
def backend(request: pytest.FixtureRequest) -> Backend:
    return cast(Backend, request.param)


def small_program(backend: Backend, options: Options = EXACT) -> Program:
    small = small_model("llama", np.random.default_rng(2), layers=2)
    return backend.prepare(small.graph(), small.arrays, options)


def test_a_sequence_goes_on_where_it_ended(backend: Backend) -> None:
    program = small_program(backend)
    whole = all_logits(program, IDS)
    sequence = program.open_sequence()
    pieces = [program.run([Piece(sequence, part, wants="all")]) for part in np.split(IDS, [1, 2, 6])]
    assert program.length(sequence) == len(IDS)
    assert nmse(np.concatenate(pieces), whole) < REFERENCE


@pytest.mark.parametrize(
    ("wants", "rows"), [("all", range(8)), ("last", [7]), ("none", []), (0, range(8)), (5, [5, 6, 7])]
)
def test_logits_of_the_wanted_rows(backend: Backend, wants: object, rows: list[int]) -> None:
    program = small_program(backend)
    sequence = program.open_sequence()
    logits = program.run([Piece(sequence, IDS, wants=wants)])  # type: ignore[arg-type]
    assert logits.shape == (len(rows), 40)
    assert logits.dtype == np.float32
    assert np.allclose(logits, all_logits(program, IDS)[list(rows)], rtol=1e-5, atol=1e-6)
    assert program.length(sequence) == 8


@pytest.mark.parametrize("case", ["any", "equal", "nan"])
def test_the_likeliest_tokens(backend: Backend, case: str) -> None:
    """Of equals the first; NaN before any number, as NumPy has it."""
    count, rng = 700, np.random.default_rng(6)
    names = ("token_embd.weight", "output.weight")
    weights = {name: rng.normal(0, 1, (count, WIDTH)).astype(np.float32) for name in names}
    if case == "equal":
        weights["output.weight"][300:] = weights["output.weight"][299]
        weights["output.weight"][:299] = 0
    if case == "nan":
        weights["output.weight"][[650, 655]] = np.nan
    g = GraphBuilder("test", {name: TensorFact((count, WIDTH), "F32") for name in names})
    graph = g.finish(g.linear(g.add(Op.LAST, (g.embed(g.tokens()),), label="last"), "output"))
    program = backend.prepare(graph, weights, EXACT)
    one, other = program.open_sequence(), program.open_sequence()
    pieces = [Piece(one, IDS), Piece(other, IDS[:5] + 30, wants="all")]
    logits = program.run(pieces)
    tokens, peaks = program.likeliest(pieces)
    assert tokens.tolist() == logits.argmax(axis=-1).tolist()
    np.testing.assert_array_equal(peaks, logits[np.arange(6), tokens])
    assert program.length(one) == 2 * len(IDS)
    if case == "equal":
        assert set(tokens.tolist()) == {0, 299}
    if case == "nan":
        assert set(tokens.tolist()) == {650}


def test_sequences_share_a_batch(backend: Backend) -> None:
    program = small_program(backend)
    one, two = program.open_sequence(), program.open_sequence()
    logits = program.run([Piece(two, IDS[:3], wants="all"), Piece(one, IDS[3:], wants="last")])
    assert logits.shape == (4, 40)
    assert nmse(logits[:3], all_logits(program, IDS[:3])) < REFERENCE
    assert nmse(logits[3], all_logits(program, IDS[3:])[-1]) < REFERENCE
    assert (program.length(one), program.length(two)) == (5, 3)


def test_pieces_of_one_sequence_follow_one_another(backend: Backend) -> None:
    program = small_program(backend)
    sequence = program.open_sequence()
    logits = program.run([Piece(sequence, IDS[:5], wants="none"), Piece(sequence, IDS[5:], wants="all")])
    assert nmse(logits, all_logits(program, IDS)[5:]) < REFERENCE


def test_forks_and_rewinds(backend: Backend) -> None:
    program = small_program(backend)
    whole = all_logits(program, IDS)
    first = program.open_sequence()
    program.run([Piece(first, IDS)])
    second = program.fork_sequence(first, 5)
    third = program.fork_sequence(first)
    other = program.run([Piece(second, IDS[:3], wants="all")])
    assert nmse(other, all_logits(program, np.concatenate([IDS[:5], IDS[:3]]))[5:]) < REFERENCE
    program.truncate_sequence(first, 5)
    assert nmse(program.run([Piece(first, IDS[5:], wants="all")]), whole[5:]) < REFERENCE
    program.close_sequence(first)
    assert (program.length(second), program.length(third)) == (8, 8)
    longer = np.concatenate([IDS, IDS[:1]])
    assert nmse(program.run([Piece(third, IDS[:1])])[0], all_logits(program, longer)[-1]) < REFERENCE
    with pytest.raises(GraphError, match="cannot rewind: found 12, expected 0 to 9 tokens"):
        program.truncate_sequence(third, 12)
    with pytest.raises(GraphError, match="cannot rewind: found -1"):
        program.fork_sequence(third, -1)


def test_a_window_hides_what_is_further_back(backend: Backend) -> None:
    small = small_model("qwen2", np.random.default_rng(2))
    full = logits_of(backend, small.graph(), small.arrays, IDS)
    small.metadata["qwen2.attention.sliding_window"] = Value.u32(4)
    program = backend.prepare(small.graph(), small.arrays, EXACT)
    windowed = all_logits(program, IDS)
    assert nmse(windowed[:4], full[:4]) < REFERENCE
    assert nmse(windowed[4:], full[4:]) > 1e-4


@pytest.mark.parametrize("model", ["llama", "qwen3moe"])
@pytest.mark.parametrize("dora", [False, True])
def test_every_row_has_its_own_adapters(backend: Backend, model: str, dora: bool) -> None:
    """As the graph with its set attached computes it."""
    rng = np.random.default_rng(4)
    small = small_model(model, rng, layers=1)
    shapes = linears(model)
    inner = {base: shape for base, shape in shapes.items() if base != "token_embd"}
    program = backend.prepare(small.graph(), small.arrays, EXACT)
    adapters = [random_adapter(rng, shapes), random_adapter(rng, inner, rank=5, dora=dora)]
    slots = [program.add_adapter(adapter) for adapter in adapters]
    chosen = [(), ((0, 1.0),), ((1, 0.5),), ((1, 1.0), (0, -0.5)), ((0, 2.0), (1, 1.0))]
    sequences = [program.open_sequence() for _ in chosen]
    pieces = [
        Piece(sequence, IDS, tuple((slots[i], strength) for i, strength in pairs), wants="all")
        for sequence, pairs in zip(sequences, chosen, strict=True)
    ]
    for pairs, logits in zip(chosen, np.split(program.run(pieces), len(chosen)), strict=True):
        graph, tensors = attach(small.graph(), [(adapters[i], s) for i, s in pairs], small.arrays)
        alone = ReferenceBackend().prepare(graph, small.arrays | tensors)
        assert nmse(logits, all_logits(alone, IDS)) < REFERENCE, pairs


def test_adapters_change_within_a_sequence(backend: Backend) -> None:
    """What was read under other adapters stays as it was read."""
    rng = np.random.default_rng(4)
    program = small_program(backend)
    slot = program.add_adapter(random_adapter(rng, {"blk.0.attn_v": linears("llama")["blk.0.attn_v"]}))
    sequence = program.open_sequence()
    program.run([Piece(sequence, IDS[:4], ((slot, 1.0),))])
    mixed = program.run([Piece(sequence, IDS[4:], wants="all")])
    assert nmse(mixed, all_logits(program, IDS)[4:]) > 1e-4
    again = program.open_sequence()
    once = program.run([Piece(again, IDS[:4], ((slot, 1.0),)), Piece(again, IDS[4:], wants=0)])
    assert nmse(once[1:], mixed) < REFERENCE


def test_a_dropped_slot_is_not_used_again(backend: Backend) -> None:
    rng = np.random.default_rng(4)
    program = small_program(backend)
    first, second = (random_adapter(rng, linears("llama")) for _ in range(2))
    one, two = program.add_adapter(first), program.add_adapter(second)
    assert one != two
    program.drop_adapter(one)
    assert program.add_adapter(first) not in (one, two)
    sequence = program.open_sequence()
    with pytest.raises(AdapterError, match=f"adapter {one}: there is none in this slot"):
        program.run([Piece(sequence, IDS, ((two, 1.0), (one, 1.0)))])
    with pytest.raises(AdapterError, match="there is none in this slot"):
        program.drop_adapter(one)
    with pytest.raises(AdapterError, match="bad strength: found nan"):
        program.run([Piece(sequence, IDS, ((two, float("nan")),))])
    with pytest.raises(AdapterError, match="not a linear layer of this model"):
        program.add_adapter(random_adapter(rng, {"blk.9.attn_q": (32, 32)}))
    biased = replace(first, biases={"blk.0.attn_q.bias": np.zeros(32, np.float32)})
    with pytest.raises(AdapterError, match=r"changes whole tensors.*; load the model with it"):
        program.add_adapter(biased)
    assert program.length(sequence) == 0


def test_misuse_is_refused_and_changes_nothing(backend: Backend) -> None:
    program = small_program(backend, Options(context=8, keys_values="f32"))
    sequence, other = program.open_sequence(), program.open_sequence()
    program.run([Piece(sequence, IDS[:3])])

    def refused(message: str, *pieces: Piece) -> None:
        with pytest.raises(GraphError, match=message):
            program.run(list(pieces))
        assert (program.length(sequence), program.length(other)) == (3, 0)

    refused("no such token: found 40, expected 0 to 39", Piece(sequence, np.array([1, 40], np.int32)))
    refused("no such token: found -1", Piece(sequence, np.array([-1], np.int32)))
    refused("the context is full: found 11, expected up to 8 tokens", Piece(other, IDS), Piece(sequence, IDS))
    refused("at least one", Piece(sequence, IDS[:0]))
    refused("has no rows")
    refused("sequence 99: is not open", Piece(99, IDS))
    refused(
        r"is not continued: found positions \[2, 3\], expected from 3 on", Piece(sequence, IDS[:2], start=2)
    )
    refused("must be together", Piece(sequence, IDS[:1]), Piece(other, IDS[:1]), Piece(sequence, IDS[:1]))
    refused("no such rows to want: found 9", Piece(sequence, IDS[:2], wants=9))
    batch = Batch.of([Piece(sequence, IDS[:2], start=3)])
    with pytest.raises(GraphError, match="must say where it starts"):
        Batch.of([Piece(sequence, IDS[:2])])
    with pytest.raises(GraphError, match="wants must be a list, one for each token"):
        replace(batch, wants=np.ones(3, np.bool_))
    with pytest.raises(GraphError, match="no such set of adapters"):
        program.forward(replace(batch, adapters=np.array([0, 0], np.int32)))
    with pytest.raises(
        GraphError, match=r"hidden: is not the input of this graph: found shape \(2, 32\), expected none"
    ):
        program.forward(batch, np.zeros((2, WIDTH), np.float32))
    program.close_sequence(other)
    with pytest.raises(GraphError, match="is not open"):
        program.length(other)
    left = program.run([Piece(sequence, IDS[3:], wants="all")])
    assert nmse(left, all_logits(small_program(backend), IDS)[3:]) < REFERENCE


def test_a_pool_of_a_given_size(backend: Backend) -> None:
    program = small_program(backend, Options(pool_bytes=2_000_000, keys_values="f32"))
    full, sequence = program.open_sequence(), program.open_sequence()
    program.run([Piece(sequence, IDS)])
    with pytest.raises(PoolError, match="no room"):
        program.run([Piece(full, np.tile(IDS, 1000), wants="none")])
    assert (program.length(full), program.length(sequence)) == (0, 8)
    again = program.run([Piece(sequence, IDS, wants="all")])
    assert nmse(again, all_logits(program, np.tile(IDS, 2))[8:]) < REFERENCE


def test_a_slice_takes_and_gives_hidden_rows(backend: Backend) -> None:
    small = small_model("llama", np.random.default_rng(2), layers=2)
    graph = small.graph()
    hidden = None
    for part in (slice_graph(graph, 0, 1), slice_graph(graph, 1, 2), slice_graph(graph, 2)):
        weights = {name: small.arrays[name] for name in part.tensors}
        program = backend.prepare(part, weights, EXACT)
        hidden = program.run([Piece(program.open_sequence(), IDS, wants=6)], hidden)
    assert hidden is not None
    assert nmse(hidden, logits_of(backend, graph, small.arrays, IDS)[6:]) < REFERENCE
    program = backend.prepare(slice_graph(graph, 1), small.arrays, EXACT)
    with pytest.raises(GraphError, match=r"hidden: is not the input of this graph: expected shape \(8, 32\)"):
        program.run([Piece(program.open_sequence(), IDS)])


def test_an_observer_that_fails_stops_the_pass(backend: Backend) -> None:
    program = small_program(backend)
    sequence = program.open_sequence()
    program.run([Piece(sequence, IDS[:4])])

    def refuse(weights: tuple[str, ...], x: np.ndarray, ids: np.ndarray | None) -> None:
        if "blk.1.ffn_down.weight" in weights:
            program.length(sequence)  # to ask is allowed
            program.truncate_sequence(sequence, 0)

    program.observer = refuse
    with pytest.raises(GraphError, match="program: is running: its observer cannot use it"):
        program.run([Piece(sequence, IDS[4:])])
    program.observer = None
    assert program.length(sequence) == 4
    assert (
        nmse(program.run([Piece(sequence, IDS[4:], wants="all")]), all_logits(program, IDS)[4:]) < REFERENCE
    )


def test_threads_take_turns(backend: Backend) -> None:
    program = small_program(backend)
    wanted = {n: all_logits(program, np.tile(IDS, n)) for n in (1, 5, 9)}
    wrong: list[int] = []

    def work(n: int) -> None:
        for _ in range(5):
            if nmse(all_logits(program, np.tile(IDS, n)), wanted[n]) > REFERENCE:
                wrong.append(n)

    threads = [threading.Thread(target=work, args=(n,)) for n in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_computes_the_same(backend: Backend) -> None:
    """A fork copies no thread but the caller's: a pool made before must not wait for the others."""
    if backend.name in ("webgpu", "triton"):
        pytest.skip(
            "a GPU belongs to the process that opened it: backends/webgpu/test_device.py, test_triton.py"
        )
    program = small_program(backend, Options(threads=3, keys_values="f32"))
    expected = all_logits(program, np.tile(IDS, 8))
    child = os.fork()
    if child == 0:
        same = np.array_equal(all_logits(program, np.tile(IDS, 8)), expected)
        del program
        os._exit(0 if same else 1)
    deadline = time.monotonic() + 120
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.01)
    if ended == (0, 0):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert ended == (child, 0)


def test_errors_are_the_products_own() -> None:
    assert issubclass(PoolError, LoragraftError)
