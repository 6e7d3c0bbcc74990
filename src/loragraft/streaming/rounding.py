"""How far each tensor of a model would be from itself as each of several types: measured, nothing is written."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence, Set

import numpy as np

from loragraft.adapters.lora import Floats
from loragraft.progress import SILENT, Progress
from loragraft.quants import native
from loragraft.quants.types import QuantType
from loragraft.streaming.pipeline import Chunk, Step, chunks, floats_of
from loragraft.system.threads import thread_pool


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
    errors = {(step.name, kind): 0.0 for step in steps for kind in types[step.name]}
    progress.start("Rounding", sum(step.weights * len(types[step.name]) for step in steps))
    lock = threading.Lock()

    def measure(chunk: Chunk) -> None:
        step = chunk.step
        weights = floats_of(chunk)
        importance = None
        if step.importance is not None:
            importance = step.importance[chunk.start // step.matrix_rows % len(step.importance)]
        for kind in types[step.name]:
            error = _squares(weights, kind, importance)
            progress.advance(weights.size)
            with lock:
                errors[step.name, kind] += error
        step.source.release(chunk.start, chunk.stop)

    with thread_pool(threads) as pool:
        for _ in pool.map(measure, (chunk for step in steps for chunk in chunks(step))):
            pass
    return errors


def _squares(weights: Floats, kind: QuantType, importance: Floats | None) -> float:
    rounded = native.dequantize(native.quantize(weights, kind, importance), kind)
    columns = np.square(np.subtract(weights, rounded, out=rounded)).sum(axis=0, dtype=np.float64)
    return float(columns.sum() if importance is None else columns @ importance)
