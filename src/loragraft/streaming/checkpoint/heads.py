"""A matrix of a checkpoint that GGUF has in several tensors, as stacks by head or by rows, put together again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from loragraft.adapters.delta import Change
from loragraft.arrays import Bytes
from loragraft.formats.source import TensorSource
from loragraft.formats.views import Computed
from loragraft.quants.types import F32
from loragraft.streaming.rows import floats_of
from loragraft.streaming.steps import Chunk, Step


@dataclass(frozen=True, slots=True)
class HeadStack:
    """Of each head some rows of the matrix, `turned`: transposed; with what is to be done to them."""

    source: TensorSource
    turned: bool
    deltas: Sequence[Change] = ()
    scales: npt.NDArray[np.float32] | None = None

    @property
    def rows(self) -> int:
        """Of the matrix, for each head."""
        return self.source.shape[-1] if self.turned else self.source.shape[-2]


def matrix_of_heads(name: str, stacks: Sequence[HeadStack]) -> TensorSource:
    """F32: head after head its rows of each stack, dequantized, scaled and with the deltas."""
    first = stacks[0]
    heads, each = first.source.shape[0], sum(stack.rows for stack in stacks)
    columns = first.source.shape[-2] if first.turned else first.source.shape[-1]
    steps = [
        (Step(stack.source.name, stack.source, F32, tuple(stack.deltas), multiplier=stack.scales), stack)
        for stack in stacks
    ]

    def of(head: int) -> npt.NDArray[np.float32]:
        parts = []
        for step, stack in steps:
            size = stack.source.shape[-2]
            part = floats_of(Chunk(step, head * size, (head + 1) * size))
            parts.append(part.T if stack.turned else part)
        return np.concatenate(parts)

    def compute(start: int, stop: int) -> Bytes:
        whole = range(start // each, -(-stop // each))
        rows = [of(head) for head in whole] or [np.empty((0, columns), np.float32)]
        skipped = whole.start * each
        return np.ascontiguousarray(np.concatenate(rows)[start - skipped : stop - skipped]).view(np.uint8)

    return Computed(name, (heads * each, columns), F32, compute)


@dataclass(frozen=True, slots=True)
class RowPart:
    """Some rows of a matrix: row i of `source` is its row order[i]; with what is to be done to them."""

    source: TensorSource
    order: npt.NDArray[np.intp]
    deltas: Sequence[Change] = ()
    scales: npt.NDArray[np.float32] | None = None


def matrix_of_parts(name: str, parts: Sequence[RowPart]) -> TensorSource:
    """The rows of all parts in the matrix's order. They have each row once. F32, dequantized, scaled and with the
    deltas; or as they are, if all are of one type and nothing is to be done to them."""
    rows, first = sum(len(part.order) for part in parts), parts[0].source
    owner, place = np.empty(rows, np.intp), np.empty(rows, np.intp)
    for number, part in enumerate(parts):
        owner[part.order], place[part.order] = number, np.arange(len(part.order))
    as_they_are = all(
        part.source.type == first.type and not part.deltas and part.scales is None for part in parts
    )
    kind = first.type if as_they_are else F32
    steps = [
        Step(part.source.name, part.source, F32, tuple(part.deltas), multiplier=part.scales) for part in parts
    ]

    def taken(step: Step, start: int, stop: int) -> Bytes:
        if as_they_are:
            return step.source.rows(start, stop)
        return floats_of(Chunk(step, start, stop)).view(np.uint8)

    def compute(start: int, stop: int) -> Bytes:
        own, at = owner[start:stop], place[start:stop]
        out = np.empty((stop - start, kind.row_bytes(first.columns)), np.uint8)
        for number, step in enumerate(steps):
            [mine] = np.nonzero(own == number)
            wanted = at[mine]
            cuts = (np.diff(wanted) != 1) | (np.diff(wanted // step.matrix_rows) != 0)
            for run in np.split(np.arange(len(mine)), np.flatnonzero(cuts) + 1):
                if len(run):
                    out[mine[run]] = taken(step, int(wanted[run[0]]), int(wanted[run[-1]]) + 1)
        return out

    return Computed(name, (rows, first.columns), kind, compute)
