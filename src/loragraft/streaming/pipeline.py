"""The one pass of every verb that writes a model: read rows, add deltas, round, quantize, write them at their place.

The tensors are cut into chunks of rows, which threads take one after another with no barrier between tensors. Every
output offset is known before the first row is read, so each chunk is written as soon as it is done. A thread holds one
chunk's output and a block of floats that fits the cache; of the mapped inputs only the chunks under way are resident.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from loragraft import _native
from loragraft.errors import QuantizeError, naming
from loragraft.formats.layout import TensorWriter
from loragraft.formats.source import Bytes, TensorSource
from loragraft.progress import SILENT, Progress
from loragraft.quants.types import F32, QuantType
from loragraft.streaming.journal import Journal, Span
from loragraft.system.interrupts import held
from loragraft.system.threads import thread_pool

if TYPE_CHECKING:
    from loragraft.adapters.delta import Delta
    from loragraft.adapters.lora import Floats

#: Weights of a chunk: some milliseconds of work, so that neither its call nor the wait for the last one matters.
CHUNK_WEIGHTS = 512 * 1024
#: How many chunks per thread the inputs are read ahead.
READ_AHEAD = 2


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
    deltas: tuple[Delta, ...] = ()
    importance: Floats | None = None
    through_f16: bool = False
    multiplier: Floats | None = None
    scales: Floats | None = None

    @property
    def copies(self) -> bool:
        """Whether the bytes stay as they are."""
        return self.source.type == self.type and not self.deltas and self.multiplier is None

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


def chunks(step: Step, weights: int = CHUNK_WEIGHTS, done: Iterable[Span] = ()) -> Iterator[Chunk]:
    """The rows of `step` that are not in `done`, in chunks of about `weights` weights."""
    at_once = max(1, weights // step.source.columns)
    begin = 0
    for start, stop in [*sorted(done), (step.source.n_rows, step.source.n_rows)]:
        while begin < start:
            matrix_end = (begin // step.matrix_rows + 1) * step.matrix_rows
            end = min(begin + at_once, matrix_end, start)
            yield Chunk(step, begin, end)
            begin = end
        begin = max(begin, stop)


@dataclass(frozen=True)
class OutputPart:
    """One file of the output and the steps whose tensors lie in it."""

    writer: TensorWriter
    steps: Sequence[Step]
    journal: Journal | None = None

    def done(self, step: Step) -> Sequence[Span]:
        """The rows that the journal of an earlier run says are written."""
        return self.journal.done.get(step.name, ()) if self.journal is not None else ()


def run_pass(
    parts: Sequence[OutputPart],
    *,
    threads: int,
    max_memory: int | None = None,
    subject: Path | str = "",
    progress: Progress = SILENT,
    label: str = "Writing",
) -> None:
    """Write every tensor of `parts`, but for rows that a journal says are done.

    `max_memory`: bytes that the threads' buffers may take together. `subject` names the model in errors. Raises
    `QuantizeError` for a weight that is not finite or that the output's type cannot hold, naming tensor, row and
    column.
    """
    todo = [(part, step) for part in parts for step in part.steps]
    progress.start(label, sum(step.weights for _, step in todo))
    for part, step in todo:
        rows = sum(stop - start for start, stop in part.done(step))
        part.writer.wrote(step.name, rows * step.row_bytes)
        progress.advance(rows * step.source.columns)
    weights = CHUNK_WEIGHTS
    if max_memory is not None:
        weights = min(weights, max_memory // (threads * _BYTES_PER_WEIGHT))
    items = ((part, chunk) for part, step in todo for chunk in chunks(step, weights, part.done(step)))
    queue = _Queue(items, ahead=threads * READ_AHEAD)

    def work() -> None:
        buffer = np.empty(0, np.uint8)
        try:
            while (item := queue.take()) is not None:
                part, chunk = item
                buffer = _run_chunk(part, chunk, buffer, subject)
                progress.advance((chunk.stop - chunk.start) * chunk.step.source.columns)
        except BaseException:
            queue.stop()
            raise

    with thread_pool(threads) as pool:
        try:
            with held():  # the pool waits at its end for the threads that it knows
                futures = [pool.submit(work) for _ in range(threads)]
            for future in futures:
                future.result()
        except BaseException:
            queue.stop()  # Ctrl-C reaches the waiting thread only
            raise


#: Output (at most F32) and the block of floats, per weight of a chunk; generous.
_BYTES_PER_WEIGHT = 8


class _Queue:
    """Hands out chunks to threads, and has the inputs read ahead of them."""

    def __init__(self, items: Iterator[tuple[OutputPart, Chunk]], ahead: int) -> None:
        self._items = items
        self._lock = threading.Lock()
        self._next: list[tuple[OutputPart, Chunk]] = []
        self._ahead = ahead
        self._stopped = False

    def take(self) -> tuple[OutputPart, Chunk] | None:
        with self._lock:
            if self._stopped:
                return None
            coming = list(itertools.islice(self._items, self._ahead + 1 - len(self._next)))
            self._next += coming
            item = self._next.pop(0) if self._next else None
        for _, chunk in coming:
            chunk.step.source.prefetch(chunk.start, chunk.stop)
        return item

    def stop(self) -> None:
        with self._lock:
            self._stopped = True


def _run_chunk(part: OutputPart, chunk: Chunk, buffer: Bytes, subject: Path | str) -> Bytes:
    """Write one chunk; returns the buffer, grown if it had to be."""
    step, source = chunk.step, chunk.step.source
    with naming(subject):
        rows = source.rows(chunk.start, chunk.stop)
    if step.copies:
        _compute(subject, chunk, rows, None)
        data = rows
    else:
        size = (chunk.stop - chunk.start) * step.row_bytes
        if len(buffer) < size:
            buffer = np.empty(size, np.uint8)
        data = buffer[:size]
        _compute(subject, chunk, rows, data)
    part.writer.write(step.name, chunk.start * step.row_bytes, data)
    if part.journal is not None:
        part.journal.add(step.name, chunk.start, chunk.stop)
    source.release(chunk.start, chunk.stop)
    return buffer


def _compute(subject: Path | str, chunk: Chunk, rows: Bytes, out: Bytes | None) -> None:
    """Compute `out` from `rows` (or only look at them, if it is None); raises what was found on the way."""
    step = chunk.step
    if out is None and not _native.supports(step.source.type.id):
        return  # integers, which are always finite
    fault, row, column = _stream(chunk, rows, out, step.type)
    if fault:
        raise _fault(subject, chunk, fault, row, column)


def floats_of(chunk: Chunk) -> Floats:
    """The weights of a chunk as float32 [rows, columns], merged, and rounded to F16 where the step says so."""
    source = chunk.step.source
    out = np.empty((chunk.stop - chunk.start, source.columns), np.float32)
    fault, row, column = _stream(chunk, source.rows(chunk.start, chunk.stop), out.view(np.uint8), F32)
    if fault:
        raise _fault(source.name, chunk, fault, row, column)
    return out


def _stream(chunk: Chunk, rows: Bytes, out: Bytes | None, kind: QuantType) -> tuple[int, int, int]:
    step, source = chunk.step, chunk.step.source
    matrix = chunk.start // step.matrix_rows
    first, last = chunk.start - matrix * step.matrix_rows, chunk.stop - matrix * step.matrix_rows
    deltas = [delta.rows(matrix, slice(first, last)) for delta in step.deltas]
    stored, multiplier = source.type, 1.0
    if step.multiplier is not None:
        multiplier = float(step.multiplier[matrix % len(step.multiplier)])
    if any(delta.magnitude is not None for delta in deltas):
        from loragraft.adapters.delta import combine

        plain = np.empty((len(rows), source.columns), np.float32)
        fault = _native_rows(rows, stored, plain.view(np.uint8), F32, (), multiplier)
        if fault[0]:
            return fault
        merged = np.ascontiguousarray(combine(plain, deltas, _plus))
        rows, stored, deltas, multiplier = merged.view(np.uint8), F32, [], 1.0
    importance = None if step.importance is None else step.importance[matrix % len(step.importance)]
    scale = 0.0 if step.scales is None else float(step.scales[matrix])
    return _native_rows(
        rows, stored, out, kind, deltas, multiplier, importance, scale, through_f16=step.through_f16
    )


def _plus(weights: Floats, delta: Delta) -> Floats:
    out = np.empty_like(weights)
    _native_rows(weights.view(np.uint8), F32, out.view(np.uint8), F32, [delta])
    return out


def _native_rows(
    rows: Bytes,
    stored: QuantType,
    out: Bytes | None,
    kind: QuantType,
    deltas: Sequence[Delta],
    multiplier: float = 1.0,
    importance: Floats | None = None,
    scale: float = 0.0,
    *,
    through_f16: bool = False,
) -> tuple[int, int, int]:
    pairs = [(delta.a, delta.b, delta.scale) for delta in deltas]
    columns = rows.shape[1] // stored.bytes * stored.block
    result: tuple[int, int, int] = _native.stream_rows(
        rows, stored.id, out, kind.id, len(rows), columns, pairs, through_f16, importance, multiplier, scale
    )
    return result


_INPUT, _RANGE, _SCALE = 1, 2, 3


def _fault(subject: Path | str, chunk: Chunk, fault: int, row: int, column: int) -> QuantizeError:
    step = chunk.step
    place = f"tensor {step.source.name!r}, row {chunk.start + row}, column {column}"
    if fault == _INPUT:
        what = "is not finite" if step.source.type.is_float else "begins a block whose scale is not finite"
        return QuantizeError(
            subject,
            f"{place} {what}",
            hint="the file is damaged or its training diverged: get it anew, or use an earlier checkpoint",
        )
    if fault == _RANGE:
        through = "F16" if step.through_f16 else step.type.name
        return QuantizeError(
            subject,
            f"{place} does not fit {through}",
            hint="a smaller scale of the adapter, or --type BF16 or F32, keeps the value",
        )
    return QuantizeError(
        subject,
        f"{place} begins a block whose scale does not fit {step.type}",
        expected="weights below about 65504 times the type's largest code",
        hint=f"keep the tensor in F32: --tensor-type {step.name}=F32",
    )
