"""Rows of a batch, to the bit, of architectures whose layers are more than attention and a feed-forward network:
tests/backends/test_batch_invariance.py has the others."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest

import loragraft as lg
from archs.test_hf_configs import write
from archs.test_hf_peft import write_adapter
from hf_configs import logits
from loragraft.backends.batch import Piece

#: All layers Mamba's, or most.
RECURRENT = ("mamba2", "bamba")


@pytest.mark.parametrize("backend", ["reference", "native"])
@pytest.mark.parametrize("case", ["gemma3n", "gemma4-experts", "phimoe", *RECURRENT])
def test_a_row_is_what_its_sequence_alone_would_give(
    tmp_path: Path, case: str, backend: Literal["reference", "native"]
) -> None:
    """Beside another sequence, with and without an adapter, in pieces, and after a rewind, where one can be."""
    ids = logits()["ids"].astype(np.int32)[:20]
    folder, adapter = write(tmp_path / "m", case), write_adapter(tmp_path / "a", case)
    model = lg.load(folder, adapters=[adapter], backend=backend, threads=2, activations="f32", context=64)
    program, one = model.program, model.program.open_sequence()
    used = model.adapters.active
    assert used
    alone = program.run([Piece(one, ids, used, "all")])
    program.close_sequence(one)
    first, second = program.open_sequence(), program.open_sequence()
    program.run([Piece(first, ids[:9], used, "all"), Piece(second, ids[::-1][:5].copy(), (), "all")])
    both = program.run([Piece(second, ids[3:6], (), "all"), Piece(first, ids[9:15], used, "all")])
    np.testing.assert_array_equal(both[3:], alone[9:15])
    length = 15
    if case not in RECURRENT:
        program.truncate_sequence(first, length := 11)
    np.testing.assert_array_equal(program.run([Piece(first, ids[length:], used, "all")]), alone[length:])
