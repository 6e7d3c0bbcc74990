"""The arithmetic of the pass on bytes that nobody's quantizer wrote."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from loragraft.arrays import Bytes
from loragraft.errors import QuantizeError
from loragraft.formats.views import Computed
from loragraft.quants import reference
from loragraft.quants.types import BY_NAME, F32, QuantType
from loragraft.streaming.rows import encode
from loragraft.streaming.steps import Chunk, Step

ROWS, BLOCKS = 64, 3


def _span(rows: Bytes, start: int, stop: int) -> Bytes:
    return rows[start:stop]


def chunk_of(rows: Bytes, kind: QuantType, target: QuantType) -> Chunk:
    shape = len(rows), rows.shape[1] // kind.bytes * kind.block
    return Chunk(Step("w", Computed("w", shape, kind, partial(_span, rows)), target), 0, len(rows))


@pytest.mark.parametrize("copied", [True, False])
@pytest.mark.parametrize("name", [name for name, kind in BY_NAME.items() if kind.holds_weights])
def test_what_is_not_finite_is_found_in_every_type(name: str, copied: bool) -> None:
    """The first row with a weight that is not finite, and the first column of its block; or nothing, if all are."""
    kind = BY_NAME[name]
    rows = np.random.default_rng(3).integers(0, 256, (ROWS, BLOCKS * kind.bytes), np.uint8)
    bad = ~np.isfinite(reference.dequantize(rows, kind))
    chunk = chunk_of(rows, kind, kind if copied else F32)
    out = None if copied else np.empty(bad.size * 4, np.uint8)
    if not bad.any():
        encode(chunk, rows, out, "model")
        return
    row, column = np.argwhere(bad)[0]
    with pytest.raises(
        QuantizeError, match=f"tensor 'w', row {row}, column {column // kind.block * kind.block} "
    ):
        encode(chunk, rows, out, "model")


@pytest.mark.parametrize("name", ["MXFP4", "IQ1_M"])
def test_random_bytes_of_types_whose_scale_is_nowhere_a_half_do_hold_what_is_not_finite(name: str) -> None:
    """So that the test above tests something of them."""
    kind = BY_NAME[name]
    rows = np.random.default_rng(3).integers(0, 256, (ROWS, BLOCKS * kind.bytes), np.uint8)
    assert not np.isfinite(reference.dequantize(rows, kind)).all()
