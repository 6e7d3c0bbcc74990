"""Passes of replies that are recorded and replayed compute what they do without. The interpreter has no CUDA graphs:
here a recording is the function that would be recorded, which a replay calls again. What it took from its own pass,
and not from the tensors that stay, would be old."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gpu import needs_triton
from loragraft.backends.batch import AdapterSet, Piece
from loragraft.backends.program import Options
from loragraft.backends.triton.device import open_device
from loragraft.backends.triton.program import TritonProgram
from loragraft.backends.triton.replay import Replays, padded, recorder_of
from recurrent_model import ids_of, model
from small_models import linears, random_adapter, small_model

pytestmark = needs_triton
EXACT = Options(activations="f32")


class Recording:
    """Counts."""

    def __init__(self, *, able: bool = True) -> None:
        self.recorded = self.replayed = 0
        self.able = able

    def record(self, run: Callable[[], Any]) -> Callable[[], Any]:
        if not self.able:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.recorded += 1

        def replay() -> Any:
            self.replayed += 1
            return run()

        return replay


def both(kind: str) -> tuple[TritonProgram, TritonProgram, list[AdapterSet]]:
    """A program that replays and one that does not, and sets of adapters for both."""
    device, rng = open_device("cuda"), np.random.default_rng(2)
    if kind == "llama":
        small = small_model("llama", rng, layers=1)
        programs = [TritonProgram(device, small.graph(), small.arrays, EXACT) for _ in range(2)]
        adapter = random_adapter(rng, linears("llama", layer=0), rank=2)
        slots = [program.add_adapter(adapter) for program in programs]
        assert slots[0] == slots[1]
        return programs[0], programs[1], [(), ((slots[0], 0.5),)]
    programs = [TritonProgram(device, *model("delta"), EXACT) for _ in range(2)]
    return programs[0], programs[1], [()]


@pytest.mark.parametrize("kind", ["llama", "delta"])
def test_replays_compute_the_same(kind: str) -> None:
    """Three sequences of different lengths make tokens, in more than one page; one is forked, and the pool grows."""
    one, other, sets = both(kind)
    recording = Recording()
    one.replays = Replays(one.device, recording)
    programs = one, other
    texts = [ids_of(30, seed) for seed in range(4)]
    live = [[program.open_sequence() for _ in range(3)] for program in programs]
    for program, own in zip(programs, live, strict=True):
        for sequence, count in zip(own, (15, 3, 1), strict=True):
            program.run([Piece(sequence, texts[0][:count])])
    for step in range(7):
        if step == 4:
            for program, own in zip(programs, live, strict=True):
                own.append(program.fork_sequence(own[0]))
        chosen = [sets[(number + step // 4) % len(sets)] for number in range(4)]
        found = [
            program.run(
                [
                    Piece(sequence, texts[number][step : step + 1], chosen[number])
                    for number, sequence in enumerate(own)
                ]
            )
            for program, own in zip(programs, live, strict=True)
        ]
        np.testing.assert_array_equal(*found)
    assert recording.recorded == 2  # of three rows, and of four
    assert recording.replayed == 5


def test_what_cannot_be_recorded_runs_as_it_is() -> None:
    one, other, _ = both("delta")
    one.replays = Replays(one.device, Recording(able=False))
    sequences = [program.open_sequence() for program in (one, other)]
    for token in ids_of(4):
        pieces = [[Piece(sequence, np.array([token]))] for sequence in sequences]
        tokens, peaks = one.likeliest(pieces[0])
        logits = other.run(pieces[1])
        assert tokens[0] == logits.argmax()
        assert peaks[0] == logits.max()


def test_lists_of_pages_rarely_change_their_size() -> None:
    sizes = [len(padded(np.arange(count, dtype=np.int32))) for count in (1, 64, 65, 128, 129, 1000)]
    assert sizes == [64, 64, 128, 128, 256, 1024]
    assert padded(np.arange(3, dtype=np.int32))[:4].tolist() == [0, 1, 2, 0]


def test_the_interpreter_records_nothing() -> None:
    if not open_device("cuda").interpreted:
        pytest.skip("there is a GPU")
    assert recorder_of(open_device("cuda")) is None
