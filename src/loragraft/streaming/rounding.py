"""How far each tensor of a model would be from itself as each of several types: measured, nothing is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

import numpy as np

from loragraft.arrays import Floats
from loragraft.progress import SILENT, Progress
from loragraft.quants import native
from loragraft.quants.types import QuantType
from loragraft.streaming.rows import floats_of
from loragraft.streaming.steps import Chunk, Step, chunks
from loragraft.streaming.sweep import sweep


def rounding_errors(
    steps: Sequence[Step],
    types: Mapping[str, Set[QuantType]],
    *,
    threads: int,
    progress: Progress = SILENT,
) -> dict[tuple[str, QuantType], float]:
    """For every step and each of its `types` (by the tensor's name): the sum over its weights of the squared
    difference between the weight and what the type makes of it.

    Where a step has an importance, squares are multiplied by their column's: then the sum is the squared error of the
    layer's output, for inputs that do not go together (what quantizing with an importance matrix makes small).
    """
    progress.start("Rounding", sum(step.weights * len(types[step.name]) for step in steps))
    todo = [chunk for step in steps for chunk in chunks(step)]

    def measure(chunk: Chunk) -> dict[QuantType, float]:
        step, found = chunk.step, {}
        weights = floats_of(chunk)
        importance = None
        if step.importance is not None:
            importance = step.importance[chunk.start // step.matrix_rows % len(step.importance)]
        for kind in types[step.name]:
            found[kind] = _squares(weights, kind, importance)
            progress.advance(weights.size)
        return found

    errors = {(step.name, kind): 0.0 for step in steps for kind in types[step.name]}
    for chunk, found in zip(todo, sweep(todo, measure, threads=threads), strict=True):
        for kind, error in found.items():
            errors[chunk.step.name, kind] += error
    return errors


def _squares(weights: Floats, kind: QuantType, importance: Floats | None) -> float:
    rounded = native.dequantize(native.quantize(weights, kind, importance), kind)
    columns = np.square(np.subtract(weights, rounded, out=rounded)).sum(axis=0, dtype=np.float64)
    return float(columns.sum() if importance is None else columns @ importance)
