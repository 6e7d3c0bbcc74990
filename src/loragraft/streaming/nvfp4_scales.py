"""The per-tensor scales of a model that is quantized to NVFP4: which tensors share one, and how it is measured.

A weight is scale * E4M3 * E2M1. The scale is taken from the largest magnitude of the merged weights, over all tensors
that are multiplied with the same input (q/k/v; gate and up, expert by expert), as ModelOpt's `preprocess_linear_fusion`
has it: fused GEMMs of other engines know only one. It is stored beside the weight `X.weight` as `X.scale`, float32 [1]
or [experts]; so a pass over the weights precedes the one that writes them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from loragraft.arrays import Bytes
from loragraft.formats.gguf.scales import companion
from loragraft.formats.source import TensorSource
from loragraft.formats.views import Computed
from loragraft.progress import SILENT, Progress
from loragraft.quants.roles import Category, category, scale_group
from loragraft.quants.types import BY_NAME, F32
from loragraft.streaming.rows import floats_of
from loragraft.streaming.steps import Chunk, Step, chunks
from loragraft.streaming.sweep import sweep

NVFP4 = BY_NAME["NVFP4"]


def _span(rows: Bytes, start: int, stop: int) -> Bytes:
    return rows[start:stop]


def add_scales(steps: Sequence[Step]) -> list[Step]:
    """`steps` with a scale before every weight that is quantized to NVFP4, all ones until `measure_scales` was called.

    A scale that the input has for such a weight is folded into it. Embeddings get none, as no engine looks for it.
    """
    scales: dict[str, TensorSource] = {}
    weights: dict[str, Step] = {}
    for step in steps:
        if step.type != NVFP4 or step.copies or category(step.name) is Category.TOKEN_EMBD:
            continue
        matrices = step.source.n_rows // step.matrix_rows
        values = np.ones(matrices, np.float32)
        weights[step.name] = replace(step, scales=values)
        name = companion(step.name, "scale")
        # A view, not a copy: `measure_scales` fills in `values` before anything is written.
        rows = values.reshape(1, -1).view(np.uint8)
        scales[name] = Computed(name, values.shape, F32, partial(_span, rows))
    result: list[Step] = []
    for step in steps:
        if step.name in scales:
            continue  # the input's own, folded in
        if step.name in weights:
            source = scales[companion(step.name, "scale")]
            result.append(Step(source.name, source, source.type))
        result.append(weights.get(step.name, step))
    return result


def _own_group(step: Step) -> Hashable:
    return scale_group(step.name)


def measure_scales(
    steps: Sequence[Step],
    *,
    threads: int,
    progress: Progress = SILENT,
    group: Callable[[Step], Hashable] = _own_group,
) -> None:
    """Fill in the scales of `steps`, in place, from the largest magnitudes of the merged weights; steps of one `group`
    get the same, matrix by matrix."""
    scaled = [step for step in steps if step.scales is not None]
    if not scaled:
        return
    from loragraft.quants.nvfp4 import tensor_scale  # and with it every NumPy quantizer: slow to import

    progress.start("Measuring NVFP4 scales", sum(step.weights for step in scaled))
    todo = [chunk for step in scaled for chunk in chunks(step)]

    def measure(chunk: Chunk) -> float:
        values = floats_of(chunk)
        progress.advance(values.size)
        return max(float(values.max()), -float(values.min()))

    amax: dict[tuple[Hashable, int], float] = {}
    for chunk, largest in zip(todo, sweep(todo, measure, threads=threads), strict=True):
        place = group(chunk.step), chunk.start // chunk.step.matrix_rows
        amax[place] = max(amax.get(place, 0.0), largest)
    for step in scaled:
        if step.scales is not None:
            step.scales[:] = [tensor_scale(amax[group(step), matrix]) for matrix in range(len(step.scales))]
