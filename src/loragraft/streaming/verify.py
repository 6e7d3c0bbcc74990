"""Reads a written model back and measures how far each tensor is from what was to be stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from loragraft.adapters.delta import add_deltas
from loragraft.adapters.lora import Floats
from loragraft.errors import OutputError
from loragraft.formats.gguf.reader import GGUFFile
from loragraft.formats.source import TensorSource
from loragraft.progress import SILENT, Progress
from loragraft.quants import native
from loragraft.streaming.pipeline import Chunk, Step, chunks


@dataclass(frozen=True, slots=True)
class TensorError:
    """`relative`: root of the sum of squared differences over the root of the sum of squared weights."""

    name: str
    type: str
    relative: float


def measure_errors(
    steps: Sequence[Step], paths: Sequence[Path], progress: Progress = SILENT
) -> list[TensorError]:
    """Compare the tensors in the files `paths` with what `steps` had to store, before it was rounded.

    Raises `OutputError` for a tensor that is missing or that no longer is what was written.
    """
    written: dict[str, TensorSource] = {}
    for path in paths:
        written.update(GGUFFile.open(path).tensors)
    progress.start("Verifying", sum(step.weights for step in steps))
    errors = []
    for step in steps:
        stored = written.get(step.name)
        if stored is None or stored.type != step.type or stored.n_rows != step.source.n_rows:
            raise OutputError(paths[0], f"tensor {step.name!r} is not in it as it was written")
        if step.copies and not native.supports(step.type):
            relative = _differs(step, stored)
        else:
            relative = _relative_error(step, stored, progress)
        if step.copies and relative:
            raise OutputError(paths[0], f"tensor {step.name!r} was to be copied, but differs from the input")
        errors.append(TensorError(step.name, step.type.name, relative))
    return errors


def _differs(step: Step, stored: TensorSource) -> float:
    same = np.array_equal(step.source.rows(0, stored.n_rows), stored.rows(0, stored.n_rows))
    return 0.0 if same else 1.0


def _relative_error(step: Step, stored: TensorSource, progress: Progress) -> float:
    wrong = total = 0.0
    for chunk in chunks(step):
        wanted = _wanted(chunk).astype(np.float64)
        found = native.dequantize(stored.rows(chunk.start, chunk.stop), step.type)
        if step.scales is not None:
            found = found * step.scales[chunk.start // step.matrix_rows]
        wrong += float(np.square(wanted - found).sum())
        total += float(np.square(wanted).sum())
        for source in (step.source, stored):
            source.release(chunk.start, chunk.stop)
        progress.advance(wanted.size)
    return float(np.sqrt(wrong / total)) if total else float(wrong > 0)


def _wanted(chunk: Chunk) -> Floats:
    """The weights of a chunk with their deltas, not rounded."""
    step, source = chunk.step, chunk.step.source
    weights = native.dequantize(source.rows(chunk.start, chunk.stop), source.type)
    matrix = chunk.start // step.matrix_rows
    if step.multiplier is not None:
        weights = weights * step.multiplier[matrix % len(step.multiplier)]
    first, last = chunk.start - matrix * step.matrix_rows, chunk.stop - matrix * step.matrix_rows
    return add_deltas(weights, [delta.rows(matrix, slice(first, last)) for delta in step.deltas])
