"""DoRA: the rows of an adapted weight have a length of their own (Liu et al. 2024, arXiv 2402.09353, equation 5).

    W' = m * (W + s B A) / ||W + s B A||        with the norm of each row; m is the magnitude, trained

W is what the model computes with: the dequantized weight, with its per-tensor scale. As in PEFT (tuners/lora/dora.py),
the norm is that of the base with this adapter alone, whatever other adapters there are.
"""

from __future__ import annotations

import numpy as np

from loragraft import _native
from loragraft.adapters.lora import LoraPair
from loragraft.arrays import Floats
from loragraft.formats.source import TensorSource
from loragraft.quants.types import F32
from loragraft.system.threads import thread_count, thread_pool

_CHUNK_WEIGHTS = 1 << 19


def length_factors(magnitude: Floats, adapted: Floats) -> Floats:
    """m / ||row|| for the rows of `adapted` [n, columns]: float32 [n]. A row of zeros has no direction: 1."""
    norms = np.sqrt(np.square(adapted, dtype=np.float64).sum(axis=-1))
    factors = np.divide(magnitude, norms, out=np.ones_like(norms), where=norms > 0)
    return np.asarray(factors, np.float32)


def weight_factors(weight: TensorSource, scales: Floats | None, pair: LoraPair) -> Floats:
    """m / ||W + s B A|| for every row of `weight`, whose stored values are to be multiplied by `scales` (one per
    matrix): float32 in the shape of `pair.magnitude`. Reads the weight once, on all processors."""
    assert pair.magnitude is not None
    rows = weight.shape[-2] if len(weight.shape) > 1 else 1
    magnitude = pair.magnitude.reshape(-1)
    factors = np.empty(weight.n_rows, np.float32)
    a, b = pair.a.reshape(-1, *pair.a.shape[-2:]), pair.b.reshape(-1, *pair.b.shape[-2:])

    def measure(matrix: int, start: int, stop: int) -> None:
        first, last = matrix * rows + start, matrix * rows + stop
        adapted = np.empty((stop - start, weight.columns), np.float32)
        scale = 1.0 if scales is None else float(scales[matrix % len(scales)])
        data = np.ascontiguousarray(weight.rows(first, last))
        deltas = [(a[matrix], b[matrix, start:stop], pair.scale)]
        _native.stream_rows(
            data, weight.type.id, adapted.view(np.uint8), F32.id, *adapted.shape, deltas, False, None, scale
        )
        factors[first:last] = length_factors(magnitude[first:last], adapted)

    step = max(1, _CHUNK_WEIGHTS // weight.columns)
    with thread_pool(thread_count(None)) as pool:
        done = [
            pool.submit(measure, matrix, start, min(start + step, rows))
            for matrix in range(weight.n_rows // rows)
            for start in range(0, rows, step)
        ]
        for future in done:
            future.result()
    return factors.reshape(pair.magnitude.shape)
