"""A matrix of a checkpoint that GGUF has as stacks by head, put together again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from loragraft.adapters.delta import Change
from loragraft.formats.source import Bytes, TensorSource
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
