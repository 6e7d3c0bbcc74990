"""A row's logits are the same to the bit whatever else is in the batch, whichever adapters other rows use, however its
prefix came about, and for any number of threads: batches, forks and rewinds are drawn, and every row is held against
its sequence run alone, in one batch of its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from gpu import GPU
from loragraft.archs.graphs import build_graph
from loragraft.backends.batch import AdapterSet, Batch, Piece
from loragraft.backends.cpu.program import NativeBackend
from loragraft.backends.program import Backend, Options, Program
from loragraft.backends.reference import ReferenceBackend
from loragraft.formats.gguf.values import Value
from loragraft.graph.ops import TensorFact
from quantized import quantized
from small_models import VOCAB, linears, random_adapter, small_model

CASES = [
    pytest.param(backend, model, kind, id=f"{backend.name}-{model}-{kind}")
    for backend in (ReferenceBackend(), NativeBackend(), *(backend for backend, _ in GPU))
    for model in ("llama", "qwen2", "qwen3moe")
    for kind in ("F32", "Q4_0")
    # Triton's interpreter takes a second for what a kernel does in a millisecond.
    if backend.name != "triton" or (model, kind) == ("llama", "F32")
]
ROWS = 16
#: Dense, DoRA, an embedding alone, and one on everything but the output.
ADAPTERS = 4
Row = tuple[int, AdapterSet]


@cache
def prepared(backend: Backend, model: str, kind: str, threads: int) -> tuple[Program, list[int]]:
    """Two layers with biases and scales (Qwen2's see three tokens back), with four adapters in their slots."""
    rng = np.random.default_rng(5)
    every = [base for layer in (0, 1) for base in linears(model, layer=layer)]
    biased = tuple(base for base in every if base != "token_embd")
    scaled = tuple(base for base in every if not base.endswith("ffn_gate_inp"))  # routers have none
    small = small_model(model, rng, layers=2, biased=biased, scaled=scaled)
    if model == "qwen2":
        small.metadata["qwen2.attention.sliding_window"] = Value.u32(3)
    weights = quantized(small.arrays, kind)
    facts = {
        name: TensorFact(w.shape, w.type.name if not isinstance(w, np.ndarray) else "F32")
        for name, w in weights.items()
    }
    program = backend.prepare(build_graph(small.metadata, facts), weights, Options(threads=threads))
    shapes = linears(model, layer=0) | linears(model, layer=1)
    inner = {base: shape for base, shape in shapes.items() if base.startswith("blk.")}
    adapters = [
        random_adapter(rng, {"token_embd": shapes["token_embd"], "output": shapes["output"]}, rank=2),
        random_adapter(rng, inner, rank=9, dora=True),
        random_adapter(rng, {base: inner[base] for base in sorted(inner)[::2]}, rank=17),
        random_adapter(rng, shapes, rank=1),
    ]
    return program, [program.add_adapter(adapter) for adapter in adapters]


@dataclass
class Sequence:
    """What was fed to a sequence so far."""

    number: int
    rows: list[Row] = field(default_factory=list)


def alone(program: Program, rows: list[Row]) -> npt.NDArray[np.float32]:
    """The logits of all rows, each under its own adapters, as one batch of one sequence."""
    sequence = program.open_sequence()
    sets = sorted({chosen for _, chosen in rows})
    batch = Batch(
        np.array([token for token, _ in rows], np.int32),
        np.full(len(rows), sequence, np.int64),
        np.arange(len(rows), dtype=np.int32),
        np.ones(len(rows), np.bool_),
        np.array([sets.index(chosen) for _, chosen in rows], np.int32),
        tuple(sets),
    )
    logits = program.forward(batch)
    program.close_sequence(sequence)
    return logits


def adapter_sets(slots: list[int]) -> st.SearchStrategy[AdapterSet]:
    strengths = st.sampled_from([1.0, 0.5, -0.75])
    return st.lists(st.tuples(st.sampled_from(slots), strengths), max_size=ADAPTERS).map(tuple)


@pytest.mark.parametrize(("backend", "model", "kind"), CASES)
@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def test_a_row_is_what_its_sequence_alone_would_give(
    backend: Backend, model: str, kind: str, data: st.DataObject
) -> None:
    program, slots = prepared(backend, model, kind, data.draw(st.sampled_from([1, 2, 3]), "threads"))
    judge, same = prepared(backend, model, kind, 1)
    assert same == slots
    live: list[Sequence] = []
    try:
        for _ in range(data.draw(st.integers(1, 4), "rounds")):
            change(program, live, data)
            feed(program, judge, live, slots, data)
    finally:
        for sequence in live:
            program.close_sequence(sequence.number)


def change(program: Program, live: list[Sequence], data: st.DataObject) -> None:
    """Open, fork or rewind some sequence."""
    action = data.draw(st.sampled_from(["open", "fork", "rewind"]), "action") if live else "open"
    if action == "open":
        live.append(Sequence(program.open_sequence()))
        return
    old = data.draw(st.sampled_from(live), "of")
    length = data.draw(st.integers(0, len(old.rows)), "length")
    if action == "fork":
        live.append(Sequence(program.fork_sequence(old.number, length), old.rows[:length]))
    else:
        program.truncate_sequence(old.number, length)
        del old.rows[length:]


def feed(
    program: Program, judge: Program, live: list[Sequence], slots: list[int], data: st.DataObject
) -> None:
    """A batch of some of the sequences; every row is held against its sequence alone."""
    pieces: list[Piece] = []
    fed: list[Sequence] = []
    room = ROWS
    for sequence in data.draw(st.permutations(live), "order"):
        count = data.draw(st.integers(0, room), "tokens")
        if not count:
            continue
        room -= count
        tokens = np.array(
            data.draw(st.lists(st.integers(0, VOCAB - 1), min_size=count, max_size=count)), np.int32
        )
        chosen = data.draw(adapter_sets(slots), "adapters")
        pieces.append(Piece(sequence.number, tokens, chosen, wants="all"))
        sequence.rows += [(int(token), chosen) for token in tokens]
        fed.append(sequence)
    if not pieces:
        return
    logits = program.run(pieces)
    for piece, sequence in zip(pieces, fed, strict=True):
        wanted = alone(judge, sequence.rows)[-len(piece.tokens) :]
        found, logits = logits[: len(piece.tokens)], logits[len(piece.tokens) :]
        assert np.array_equal(found, wanted)
    assert len(logits) == 0


@pytest.mark.parametrize("kind", ["F32", "Q4_0"])
@pytest.mark.parametrize("model", ["llama", "qwen3moe"])
def test_forty_sequences_under_forty_sets_of_adapters(model: str, kind: str) -> None:
    """More columns than those few that the native backend multiplies without unpacking the weights."""
    backend = NativeBackend()
    program, slots = prepared(backend, model, kind, 2)
    judge, _ = prepared(backend, model, kind, 1)
    sets: list[AdapterSet] = [((slots[i % ADAPTERS], 1.0 + i / 64),) for i in range(40)]
    pieces = [
        Piece(program.open_sequence(), np.array([i % VOCAB], np.int32), chosen)
        for i, chosen in enumerate(sets)
    ]
    try:
        logits = program.run(pieces)
    finally:
        for piece in pieces:
            program.close_sequence(piece.sequence)
    for i, chosen in enumerate(sets):
        assert np.array_equal(logits[i], alone(judge, [(i % VOCAB, chosen)])[0]), i
    assert len(np.unique(logits, axis=0)) == len(sets)


def test_an_adapter_in_the_place_of_one_that_was_dropped() -> None:
    """The same rows pass after pass, whose adapters are another's in the same slot, or have another strength."""
    backend = NativeBackend()
    fresh = prepared.__wrapped__
    program, _ = fresh(backend, "llama", "Q4_0", 2)
    shapes = linears("llama", layer=0) | linears("llama", layer=1)
    piece = np.array([3], np.int32)
    seen = []
    for seed, strength in ((1, 1.0), (2, 1.0), (2, 0.5)):
        adapter = random_adapter(np.random.default_rng(seed), shapes, rank=9)
        slot = program.add_adapter(adapter)
        sequence = program.open_sequence()
        both = [program.run([Piece(sequence, piece, ((slot, strength),))]) for _ in range(2)]
        program.close_sequence(sequence)
        program.drop_adapter(slot)
        judge, _ = fresh(backend, "llama", "Q4_0", 1)
        chosen = ((judge.add_adapter(adapter), strength),)
        assert np.array_equal(np.concatenate(both), alone(judge, [(3, chosen)] * 2))
        seen.append(both[0])
    assert not np.array_equal(seen[0], seen[1])
    assert not np.array_equal(seen[1], seen[2])
