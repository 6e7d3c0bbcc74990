"""Files of tensors, written in one pass over the model.

Every offset is known before the first row is read, so each chunk is written as soon as it is done. A thread holds one
chunk's output and a block of floats. What is written is in a journal, so that a killed run can be continued.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from loragraft import __version__
from loragraft.arrays import Bytes
from loragraft.errors import OutputError, naming
from loragraft.formats.layout import FileLayout, TensorWriter
from loragraft.progress import SILENT, Progress
from loragraft.streaming import steps
from loragraft.streaming.journal import Journal
from loragraft.streaming.rows import encode
from loragraft.streaming.steps import Chunk, Span, Step, chunks
from loragraft.streaming.sweep import sweep
from loragraft.system.mapped import check_unchanged
from loragraft.system.output import OutputFile

#: Output (at most F32) and the block of floats, per weight of a chunk; generous.
_BYTES_PER_WEIGHT = 8


@dataclass(frozen=True)
class Pieces:
    """Tensors of the file that hold the rows of one step together: `split` makes the rows of each, of `row_bytes`
    bytes, of the step's."""

    names: tuple[str, ...]
    row_bytes: tuple[int, ...]
    split: Callable[[Bytes], Sequence[Bytes]]


@dataclass(frozen=True)
class FilePlan:
    """One file of the output. A step is the tensor of its name, or, by its name, the tensors that `pieces` says."""

    path: Path
    layout: FileLayout
    steps: Sequence[Step]
    pieces: Mapping[str, Pieces] = field(default_factory=dict)


@dataclass(frozen=True)
class OutputPart:
    """One file under way."""

    writer: TensorWriter
    steps: Sequence[Step]
    journal: Journal | None = None
    pieces: Mapping[str, Pieces] = field(default_factory=dict)

    def done(self, step: Step) -> Sequence[Span]:
        """The rows that the journal of an earlier run says are written."""
        return self.journal.done.get(step.name, ()) if self.journal is not None else ()

    def holds(self, step: Step) -> bool:
        """Whether the journal says that all its rows are written."""
        rows = sum(stop - start for start, stop in self.done(step))
        return rows == step.source.n_rows

    def skip(self, step: Step, rows: int) -> None:
        """Take note that so many rows lie in the file."""
        pieces = self.pieces.get(step.name)
        named = (
            [(step.name, step.row_bytes)]
            if pieces is None
            else zip(pieces.names, pieces.row_bytes, strict=True)
        )
        for name, row_bytes in named:
            self.writer.wrote(name, rows * row_bytes)

    def write(self, chunk: Chunk, rows: Bytes) -> None:
        for name, offset, data in pieces_of(self.pieces, chunk, rows):
            self.writer.write(name, offset, data)
        if self.journal is not None:
            self.journal.add(chunk.step.name, chunk.start, chunk.stop)


def pieces_of(pieces: Mapping[str, Pieces], chunk: Chunk, rows: Bytes) -> Iterator[tuple[str, int, Bytes]]:
    """The tensors that `rows`, those of `chunk`, belong to: name, byte of the tensor's data, and bytes."""
    step, split = chunk.step, pieces.get(chunk.step.name)
    if split is None:
        yield step.name, chunk.start * step.row_bytes, np.ascontiguousarray(rows)
        return
    for name, row_bytes, piece in zip(split.names, split.row_bytes, split.split(rows), strict=True):
        yield name, chunk.start * row_bytes, np.ascontiguousarray(piece)


class WholeTensors:
    """Writes tensors as a whole, before the pass that writes the rest."""

    def __init__(self, parts: Sequence[OutputPart]) -> None:
        self._part_of = {step.name: part for part in parts for step in part.steps}
        self.names: set[str] = set()
        """Those that are written."""

    def holds(self, step: Step) -> bool:
        """Whether an earlier run wrote all its rows."""
        part = self._part_of[step.name]
        return part.holds(step) and step.name not in part.pieces

    def earlier(self, step: Step) -> Bytes:
        """The rows uint8 [rows, row_bytes] that an earlier run wrote; they are not to be written again."""
        part = self._part_of[step.name]
        part.skip(step, step.source.n_rows)
        self.names.add(step.name)
        return np.frombuffer(part.writer.read(step.name), np.uint8).reshape(-1, step.row_bytes)

    def write(self, step: Step, rows: Bytes) -> None:
        """All rows of `step`, uint8 [rows, row_bytes]."""
        self._part_of[step.name].write(Chunk(step, 0, step.source.n_rows), np.ascontiguousarray(rows))
        self.names.add(step.name)


def write_files(
    files: Sequence[FilePlan],
    *,
    inputs: Sequence[Path],
    recipe: Iterable[object] = (),
    first: Callable[[WholeTensors], None] | None = None,
    run: Callable[..., object] | None = None,
    resume: bool = False,
    threads: int,
    max_memory: int | None = None,
    subject: Path | str = "",
    progress: Progress = SILENT,
    label: str = "Writing",
) -> None:
    """Write `files`; they appear together, when the last is whole. `inputs`: the files that the run reads.

    With `resume`, what an earlier run has written is kept, if it had the same plan: the same files, steps, inputs and
    `recipe` (whatever else decides the bytes). `first` may write whole tensors before the pass; `run` takes the place
    of `run_pass` (`spreading.spread_pass`). The rest is as for `run_pass`. Raises `OutputError`, `QuantizeError`.
    """
    digest = _digest(files, inputs, recipe)
    with ExitStack() as stack:
        parts = []
        for file in files:
            writer = TensorWriter(file.path, file.layout, inputs=inputs, resume=resume)
            stack.enter_context(writer)
            journal = None
            if isinstance(writer.output, OutputFile):
                journal = Journal(writer.output.journal, digest, resume=writer.output.resumed)
                stack.callback(journal.close)
            parts.append(OutputPart(writer, file.steps, journal, file.pieces))
        if resume:
            progress.note(_resume_note(parts))
        tensors = WholeTensors(parts)
        if first is not None:
            first(tensors)
        if run is not None:
            run(parts, files, subject=subject, progress=progress, label=label, written=tensors.names)
        else:
            run_pass(
                parts,
                threads=threads,
                max_memory=max_memory,
                subject=subject,
                progress=progress,
                label=label,
                written=tensors.names,
            )
        check_unchanged(inputs)
        for part in parts if len(parts) > 1 else ():
            part.writer.seal()  # so that all files appear at once
    for part in parts:
        _check_size(part)


def run_pass(
    parts: Sequence[OutputPart],
    *,
    threads: int,
    max_memory: int | None = None,
    subject: Path | str = "",
    progress: Progress = SILENT,
    label: str = "Writing",
    written: Container[str] = (),
) -> None:
    """Write every tensor of `parts` that is not `written`, but for rows that a journal says are done.

    `max_memory`: bytes that the threads' buffers may take together. `subject` names the model in errors. Raises as
    `loragraft.streaming.rows.encode`.
    """
    part_of = {step.name: part for part in parts for step in part.steps}
    todo = [step for part in parts for step in part.steps if step.name not in written]
    progress.start(label, sum(step.weights for step in todo))
    for step in todo:
        rows = sum(stop - start for start, stop in part_of[step.name].done(step))
        part_of[step.name].skip(step, rows)
        progress.advance(rows * step.source.columns)
    weights = steps.CHUNK_WEIGHTS
    if max_memory is not None:
        weights = min(weights, max_memory // (threads * _BYTES_PER_WEIGHT))
    buffers = threading.local()

    def write(chunk: Chunk) -> None:
        with naming(subject):
            part_of[chunk.step.name].write(chunk, encoded(chunk, buffers, subject))
        progress.advance((chunk.stop - chunk.start) * chunk.step.source.columns)

    items = (chunk for step in todo for chunk in chunks(step, weights, part_of[step.name].done(step)))
    sweep(items, write, threads=threads)


def encoded(chunk: Chunk, buffers: threading.local, subject: Path | str) -> Bytes:
    """The rows of the output: in the thread's buffer, unless they are the source's."""
    step = chunk.step
    rows = step.source.rows(chunk.start, chunk.stop)
    if step.copies:
        encode(chunk, rows, None, subject)
        return rows
    size = (chunk.stop - chunk.start) * step.row_bytes
    buffer: Bytes = getattr(buffers, "bytes", np.empty(0, np.uint8))
    if len(buffer) < size:
        buffers.bytes = buffer = np.empty(size, np.uint8)
    encode(chunk, rows, buffer[:size], subject)
    return buffer[:size].reshape(-1, step.row_bytes)


def _resume_note(parts: Sequence[OutputPart]) -> str:
    total = sum(step.source.n_rows for part in parts for step in part.steps)
    done = sum(
        stop - start
        for part in parts
        if part.journal is not None
        for spans in part.journal.done.values()
        for start, stop in spans
    )
    if not done:
        return "nothing to continue: starting from the beginning"
    return f"continuing: {100 * done / total:.0f} % of the rows are written already"


def _check_size(part: OutputPart) -> None:
    size = part.writer.path.stat().st_size
    if size != part.writer.layout.size:
        raise OutputError(
            part.writer.path,
            "is not the size that was written",
            found=f"{size} bytes",
            expected=part.writer.layout.size,
        )


def plan_digest(files: Sequence[FilePlan]) -> str:
    """Of a plan, wherever its inputs lie."""
    return _digest(files, (), ())


def _digest(files: Sequence[FilePlan], inputs: Iterable[Path], recipe: Iterable[object]) -> str:
    """Of everything that decides the output's bytes; the inputs by their size and time of change."""
    digest = hashlib.sha256(__version__.encode())

    def add(*parts: object) -> None:
        digest.update(repr(parts).encode("utf-8", "surrogateescape"))

    add(*recipe)
    for path in inputs:
        facts = path.stat() if path.exists() else None
        add(str(path.resolve()), facts and (facts.st_size, facts.st_mtime_ns, facts.st_ino))
    for file in files:
        add(file.path.name)
        digest.update(file.layout.header)
        _add_steps(digest, file.steps)
    return digest.hexdigest()


def steps_digest(steps: Iterable[Step]) -> str:
    """Of what is written, wherever it goes to."""
    digest = hashlib.sha256(__version__.encode())
    _add_steps(digest, steps)
    return digest.hexdigest()


def _add_steps(digest: hashlib._Hash, steps: Iterable[Step]) -> None:
    for step in steps:
        source = step.source
        facts = (step.name, source.name, source.shape, source.type.name, step.type.name, step.through_f16)
        digest.update(repr(facts).encode("utf-8", "surrogateescape"))
        for array in (step.importance, step.multiplier, step.scales):
            digest.update(b"none" if array is None else array.tobytes())
        for delta in step.deltas:
            digest.update(repr(tuple(delta.facts)).encode("utf-8", "surrogateescape"))
            for array in delta.arrays:
                digest.update(b"none" if array is None else array.tobytes())
