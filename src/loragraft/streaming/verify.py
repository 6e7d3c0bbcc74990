"""Reads weights: a written model's, beside what was to be stored, and any model's, to see that they are finite."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from loragraft.errors import OutputError
from loragraft.formats.gguf.reader import GGUFFile
from loragraft.formats.source import TensorSource
from loragraft.progress import SILENT, Progress
from loragraft.quants import native
from loragraft.streaming.rows import encode, floats_of
from loragraft.streaming.steps import Chunk, Step, chunks
from loragraft.streaming.sweep import sweep


@dataclass(frozen=True, slots=True)
class TensorError:
    """`relative`: root of the sum of squared differences over the root of the sum of squared weights."""

    name: str
    type: str
    relative: float


def measure_errors(
    steps: Sequence[Step], paths: Sequence[Path], *, threads: int = 1, progress: Progress = SILENT
) -> list[TensorError]:
    """Compare the tensors in the files `paths` with what `steps` had to store, before it was rounded.

    Raises `OutputError` for a tensor that is missing or that no longer is what was written.
    """
    written: dict[str, TensorSource] = {}
    for path in paths:
        written.update(GGUFFile.open(path).tensors)
    for step in steps:
        stored = written.get(step.name)
        if stored is None or stored.type != step.type or stored.n_rows != step.source.n_rows:
            raise OutputError(paths[0], f"tensor {step.name!r} is not there as it was written")
    progress.start("Verifying", sum(step.weights for step in steps))
    todo = [chunk for step in steps for chunk in chunks(step)]

    def measure(chunk: Chunk) -> tuple[float, float]:
        stored = written[chunk.step.name]
        sums = _differences(chunk, stored)
        stored.release(chunk.start, chunk.stop)
        progress.advance((chunk.stop - chunk.start) * stored.columns)
        return sums

    wrong, total = ({step.name: 0.0 for step in steps} for _ in range(2))
    for chunk, (own, all_) in zip(todo, sweep(todo, measure, threads=threads), strict=True):
        wrong[chunk.step.name] += own
        total[chunk.step.name] += all_
    for step in steps:
        if step.copies and wrong[step.name]:
            raise OutputError(paths[0], f"tensor {step.name!r} was to be copied, but differs from the input")
    return [
        TensorError(step.name, step.type.name, _relative(wrong[step.name], total[step.name]))
        for step in steps
    ]


def check_finite(
    tensors: Iterable[TensorSource], subject: Path, *, threads: int = 1, progress: Progress = SILENT
) -> None:
    """Read every weight. Raises `QuantizeError`, naming `subject`, tensor, row and column, if one is not finite."""
    steps = [Step(tensor.name, tensor, tensor.type) for tensor in tensors]
    progress.start("Reading weights", sum(step.weights for step in steps))

    def look(chunk: Chunk) -> None:
        source = chunk.step.source
        encode(chunk, source.rows(chunk.start, chunk.stop), None, subject)
        progress.advance((chunk.stop - chunk.start) * source.columns)

    sweep((chunk for step in steps for chunk in chunks(step)), look, threads=threads)


def _differences(chunk: Chunk, stored: TensorSource) -> tuple[float, float]:
    """The sums of the squares of what the weights are off by, and of the weights; of a copy, how many bytes differ."""
    step, found = chunk.step, stored.rows(chunk.start, chunk.stop)
    if step.copies:
        return float(np.count_nonzero(found != step.source.rows(chunk.start, chunk.stop))), float(found.size)
    wanted = floats_of(chunk, rounded=False).astype(np.float64)
    values = native.dequantize(found, step.type)
    if step.scales is not None:
        values = values * step.scales[chunk.start // step.matrix_rows]
    return float(np.square(wanted - values).sum()), float(np.square(wanted).sum())


def _relative(wrong: float, total: float) -> float:
    return float(np.sqrt(wrong / total)) if total else float(wrong > 0)
