"""The pass over the weights, spread over workers: each makes the same plan and writes rows of the same files.

A part is some rows of one tensor. Every offset is known, so a worker that sees the temporary file writes them at their
place; one that does not (on another machine, or where the output is an object in a bucket) sends them back. Workers get
several parts at once, fewer towards the end. The driver keeps the journal, and gives the files their names.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from loragraft import _native
from loragraft.arrays import Bytes
from loragraft.errors import LoragraftError, OutputError, naming
from loragraft.progress import SILENT, Progress
from loragraft.streaming import writing
from loragraft.streaming.journal import boot_id
from loragraft.streaming.steps import Chunk, Step, chunks
from loragraft.streaming.sweep import sweep
from loragraft.system.mapped import check_intact
from loragraft.system.output import OutputFile, flat_bytes
from loragraft.system.workers import Workers, crew_of
from loragraft.system.workers.crew import Crew, Make, Spread

#: Weights of a part: a few hundredths of a second of work, so that the last ones end together.
PART_WEIGHTS = 1 << 23
#: Weights of the parts that a worker is given together while there is much to do: it takes a cluster's driver a
#: millisecond or more to give anything.
BATCH_WEIGHTS = 1 << 25
#: What is left of a model that was rounded before is written here, if it is no more: it takes no longer than new
#: workers take to start.
LITTLE = 1 << 27

Sent = list[tuple[str, int, bytes]]
"""Of a part, what a worker could not write: names, offsets and bytes."""
Remake = Callable[[], Sequence["writing.FilePlan"]]
"""Picklable. Makes in a worker the plan that the driver made."""


@dataclass(frozen=True)
class Spreading:
    """How a run is spread: over whom, how a worker finds the plan, and its threads."""

    crew: Crew
    remake: Remake
    threads: int


@contextlib.contextmanager
def spread_over(
    workers: Workers | Crew | None, threads: int | None, remake: Remake
) -> Iterator[Spreading | None]:
    """How to spread a run over `workers`, which are ended afterwards; None for none. Raises as `crew_of`."""
    if workers is None:
        yield None
        return
    crew, each = (workers, threads or 1) if isinstance(workers, Crew) else crew_of(workers, threads)
    with crew:
        yield Spreading(crew, remake, each)


@dataclass(frozen=True, slots=True)
class Part:
    """Rows [start, stop) of the step `name` of file number `file`."""

    file: int
    name: str
    start: int
    stop: int


@dataclass(frozen=True)
class Worker:
    """Makes a worker's function: picklable, and called where the work is done."""

    remake: Remake
    digest: str
    """Of the driver's plan, which the worker's must be."""
    partials: tuple[str | None, ...]
    """The temporary files; None for what is none."""
    scales: dict[str, npt.NDArray[np.float32]]
    threads: int
    subject: str
    folder: str
    """Where the driver works: its paths may be relative."""
    boot: str
    """The driver's machine, since it was started."""

    def __call__(self) -> Callable[[Sequence[Part]], list[Sent]]:
        with contextlib.suppress(OSError):
            os.chdir(self.folder)
        files = self.remake()
        take_scales((step for file in files for step in file.steps), self.scales)
        check_same(writing.plan_digest(files), self.digest)
        return _Rows(files, self)


class _Rows:
    """Does parts: what it returns of each was not written, and is to be."""

    def __init__(self, files: Sequence[writing.FilePlan], worker: Worker) -> None:
        self._files, self._worker = files, worker
        self._steps = [{step.name: step for step in file.steps} for file in files]
        self._places = [_opened(partial) for partial in worker.partials]

    def __call__(self, parts: Sequence[Part]) -> list[Sent]:
        return list(map(self._one, parts))

    def _one(self, part: Part) -> Sent:
        file, step, place = self._files[part.file], self._steps[part.file][part.name], self._places[part.file]
        sent: Sent = []
        lock, buffers = threading.Lock(), threading.local()

        def write(chunk: Chunk) -> None:
            with naming(self._worker.subject):
                rows = writing.encoded(chunk, buffers, self._worker.subject)
            for name, offset, data in writing.pieces_of(file.pieces, chunk, rows):
                if place is None:
                    with lock:
                        sent.append((name, offset, data.tobytes()))
                else:
                    _write_all(place, data, file.layout.offsets[name] + offset)

        done = [(0, part.start), (part.stop, step.source.n_rows)]
        items = list(chunks(step, done=[span for span in done if span[0] < span[1]]))
        sweep(items, write, threads=self._worker.threads)
        check_intact()
        if place is not None and self._worker.boot != boot_id():
            os.fdatasync(place)  # so that the driver's machine sees it too
        return sent


def _opened(partial: str | None) -> int | None:
    """The temporary file, if this machine sees it: nothing else has its name."""
    if partial is None:
        return None
    try:
        return os.open(partial, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    except OSError as problem:
        raise OutputError(partial, f"cannot be written: {problem.strerror}") from None


def _write_all(descriptor: int, data: Bytes, offset: int) -> None:
    view = flat_bytes(data)
    try:
        while view:
            written = os.pwrite(descriptor, view, offset)
            # The driver's flush at the end is nobody's work but its own: let it find little.
            _native.start_writeback(descriptor, offset, written)
            view, offset = view[written:], offset + written
    except OSError as problem:
        raise OutputError("output", f"cannot be written: {problem.strerror}") from None


def spread_pass(
    parts: Sequence[writing.OutputPart],
    files: Sequence[writing.FilePlan],
    *,
    how: Spreading,
    subject: Path | str = "",
    progress: Progress = SILENT,
    label: str = "Writing",
    written: Collection[str] = (),
) -> int:
    """As `writing.run_pass`, by the workers of `how`; how many of them died. Raises what they raise."""
    todo = [
        (number, part, step)
        for number, part in enumerate(parts)
        for step in part.steps
        if step.name not in written
    ]
    left = sum(step.weights for _, _, step in todo)
    if written and left < LITTLE:
        writing.run_pass(
            parts, threads=how.threads, subject=subject, progress=progress, label=label, written=written
        )
        return 0
    progress.start(label, left)
    waiting = []
    for number, part, step in todo:
        rows = sum(stop - start for start, stop in part.done(step))
        part.skip(step, rows)
        progress.advance(rows * step.source.columns)
        waiting += [Part(number, step.name, start, stop) for start, stop in _spans(step, part)]
    steps: dict[str, Step] = {step.name: step for _, _, step in todo}

    def written_or_sent(part: Part, sent: Sent) -> None:
        step, output = steps[part.name], parts[part.file]
        for name, offset, data in sent:
            output.writer.write(name, offset, data)
        if not sent:
            output.skip(step, part.stop - part.start)
        if output.journal is not None:
            output.journal.add(part.name, part.start, part.stop)
        progress.advance((part.stop - part.start) * step.source.columns)

    def done(batch: Sequence[Part], sent: Sequence[Sent]) -> None:
        for part, own in zip(batch, sent, strict=True):
            written_or_sent(part, own)

    partials = tuple(
        str(part.writer.output.partial.resolve()) if isinstance(part.writer.output, OutputFile) else None
        for part in parts
    )
    scales = {step.name: step.scales for file in files for step in file.steps if step.scales is not None}
    make: Make = Worker(
        how.remake,
        writing.plan_digest(files),
        partials,
        scales,
        how.threads,
        str(subject),
        os.getcwd(),
        boot_id(),
    )
    batches = list(_batches(waiting, steps, how.crew.size))
    spread = Spread(how.crew, make, batches, done, ahead=1)
    spread.run()
    if spread.lost:
        progress.note(f"{spread.lost} of the workers died; what they were doing was done again")
    return spread.lost


def _spans(step: Step, part: writing.OutputPart) -> Iterator[tuple[int, int]]:
    """Rows that are not written yet, some `PART_WEIGHTS` at a time."""
    at_once = max(1, PART_WEIGHTS // step.source.columns)
    begin = 0
    for start, stop in [*sorted(part.done(step)), (step.source.n_rows, step.source.n_rows)]:
        while begin < start:
            yield begin, min(begin + at_once, start)
            begin = min(begin + at_once, start)
        begin = max(begin, stop)


def take_scales(steps: Iterable[Step], scales: Mapping[str, npt.NDArray[np.float32]]) -> None:
    """Have a worker's steps the scales that the driver found, by the steps' names."""
    for step in steps:
        if step.scales is not None:
            step.scales[:] = scales[step.name]


def check_same(digest: str, expected: str) -> None:
    """Raises LoragraftError where a worker's plan has another digest than the driver's, `expected`."""
    if digest != expected:
        raise LoragraftError(
            "workers",
            "one of them finds other files than the driver",
            hint="have the same inputs and the same loragraft on every machine",
        )


def _batches(parts: Sequence[Part], steps: Mapping[str, Step], workers: int) -> Iterator[tuple[Part, ...]]:
    """The parts, in their order: as many together as leave each worker four more such batches."""
    weights = [(part.stop - part.start) * steps[part.name].source.columns for part in parts]
    left, first = sum(weights), 0
    while first < len(parts):
        most = min(max(left // (4 * workers), PART_WEIGHTS), BATCH_WEIGHTS)
        stop, size = first + 1, weights[first]
        while stop < len(parts) and size + weights[stop] <= most:
            size += weights[stop]
            stop += 1
        yield tuple(parts[first:stop])
        left, first = left - size, stop
