"""What is to be done with each tensor of a model, and how the work is cut into chunks of rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from loragraft.arrays import Floats
from loragraft.formats.source import TensorSource
from loragraft.quants.types import QuantType

if TYPE_CHECKING:
    from loragraft.adapters.delta import Change

#: Weights of a chunk: some milliseconds of work, so that neither its call nor the wait for the last one matters.
CHUNK_WEIGHTS = 512 * 1024
#: Rows [start, stop).
Span = tuple[int, int]


@dataclass(frozen=True)
class Step:
    """One tensor of the output: `source` as `type` under the name `name`.

    `importance`: float32 [matrices, columns] (one matrix, or one per expert). `through_f16`: round to F16 before
    quantizing, as if the merged model had been written in between. `multiplier`: what the stored weights of each
    matrix must be multiplied by before a delta is added (the per-tensor scale of NVFP4), float32 [matrices]. `scales`:
    what each matrix's NVFP4 codes will be multiplied by when read, float32 [matrices]; without them NVFP4 is quantized
    as ggml does it.
    """

    name: str
    source: TensorSource
    type: QuantType
    deltas: tuple[Change, ...] = ()
    importance: Floats | None = None
    through_f16: bool = False
    multiplier: Floats | None = None
    scales: Floats | None = None

    @property
    def copies(self) -> bool:
        """Whether the bytes stay as they are."""
        changed = self.deltas or self.multiplier is not None or self.scales is not None
        return self.source.type == self.type and not changed

    @property
    def matrix_rows(self) -> int:
        """Rows of one matrix of the stack; of a vector, 1."""
        return self.source.shape[-2] if len(self.source.shape) > 1 else 1

    @property
    def weights(self) -> int:
        return prod(self.source.shape)

    @property
    def row_bytes(self) -> int:
        return self.type.row_bytes(self.source.columns)

    @property
    def nbytes(self) -> int:
        return self.source.n_rows * self.row_bytes


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows [start, stop) of a step, of one matrix only."""

    step: Step
    start: int
    stop: int


def chunks(step: Step, weights: int | None = None, done: Iterable[Span] = ()) -> Iterator[Chunk]:
    """The rows of `step` that are not in `done`, in chunks of about `weights` weights (or as many as are best)."""
    weights = CHUNK_WEIGHTS if weights is None else weights
    at_once = max(1, weights // step.source.columns)
    begin = 0
    for start, stop in [*sorted(done), (step.source.n_rows, step.source.n_rows)]:
        while begin < start:
            matrix_end = (begin // step.matrix_rows + 1) * step.matrix_rows
            end = min(begin + at_once, matrix_end, start)
            yield Chunk(step, begin, end)
            begin = end
        begin = max(begin, stop)
