"""What rounding to nearest leaves of an adapter's change, from a sample of rows.

The weights of a quantized base lie on a grid. Where the output has the same grid and a change is smaller than half a
step of it, rounding goes back to the base: the file is whole, and the fine-tune is gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from loragraft.quants import native
from loragraft.streaming.rows import encode, floats_of
from loragraft.streaming.steps import Chunk, Step

#: Tensors of a sample, and rows of each.
TENSORS, ROWS = 12, 16
#: Below this part it is worth telling. On bases that are on no grid of the output's it is near 1.
LITTLE = 0.5


def change_kept(steps: Sequence[Step]) -> float | None:
    """<q - w, d> / <d, d> over some rows of the quantized `steps` that are changed: w their weights before, d the
    change and q what is stored. 1 if rounding does not depend on the change, 0 if it is as if there were none. None if
    nothing that is quantized changes."""
    changed = [step for step in steps if step.deltas and step.type.is_quantized]
    every = -(-len(changed) // TENSORS) if changed else 1
    along, whole = 0.0, 0.0
    for step in changed[every // 2 :: every]:
        rows = step.matrix_rows
        matrix = step.source.n_rows // rows // 2 * rows
        first = matrix + max(0, rows - ROWS) // 2
        chunk = Chunk(step, first, min(first + ROWS, matrix + rows))
        before = floats_of(replace(chunk, step=replace(step, deltas=())), rounded=False).astype(np.float64)
        change = floats_of(chunk, rounded=False) - before
        along += float(np.vdot(_stored(chunk) - before, change))
        whole += float(np.vdot(change, change))
    return along / whole if whole else None


def kept_note(steps: Sequence[Step], instead: str) -> str | None:
    """What to tell the user if it is little: and what to do `instead`."""
    kept = change_kept(steps)
    if kept is None or kept >= LITTLE:
        return None
    return (
        f"rounding to nearest leaves {max(0, round(100 * kept))} % of what the adapters change (a sample of rows): the "
        f"base's weights lie on a grid and go back to it; {instead}"
    )


def _stored(chunk: Chunk) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """What the output's rows mean."""
    step = chunk.step
    out = np.empty((chunk.stop - chunk.start, step.row_bytes), np.uint8)
    encode(chunk, step.source.rows(chunk.start, chunk.stop), out, step.name)
    values = native.dequantize(out, step.type).astype(np.float64)
    return values if step.scales is None else values * step.scales[chunk.start // step.matrix_rows]
