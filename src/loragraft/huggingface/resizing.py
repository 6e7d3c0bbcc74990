"""More rows for an embedding and an output whose tokenizer has more tokens than they have rows.

transformers' resize_token_embeddings draws new rows from a normal distribution around the mean of the old ones
(`mean_resizing`, modeling_utils.py); here they are that mean, so that a file made twice is the same.
"""

from __future__ import annotations

import numpy as np

from loragraft.arrays import Bytes
from loragraft.formats.checkpoint import Checkpoint
from loragraft.formats.source import TensorSource
from loragraft.formats.views import Computed, float_rows, widened
from loragraft.huggingface.tokenizer_file import TokenizerFile
from loragraft.quants.types import F32

_CHUNK_WEIGHTS = 1 << 22


def tokenizer_size(checkpoint: Checkpoint) -> int:
    """How many tokens the tokenizer in the folder has, added ones included. Raises as reading it does."""
    tokens, _ = TokenizerFile.open(checkpoint).tokens(None)
    return len(tokens)


def grown(source: TensorSource, rows: int) -> TensorSource:
    """`source` [n, d] with `rows` rows, in its own type: what is there keeps its bytes, each new row is the mean."""
    if rows <= source.n_rows:
        return source
    mean: list[Bytes] = []

    def compute(start: int, stop: int) -> Bytes:
        old = source.rows(min(start, source.n_rows), min(stop, source.n_rows))
        new = stop - max(start, source.n_rows)
        if new <= 0:
            return old
        if not mean:
            mean.append(_mean_row(source))
        return np.ascontiguousarray(np.concatenate([old, np.repeat(mean[0], new, axis=0)]))

    return Computed(source.name, (rows, source.columns), source.type, compute, [])


def padded(source: TensorSource, rows: int) -> TensorSource:
    """`source` [n, d] of floats with `rows` rows: those that it lacks are 0."""
    if rows <= source.n_rows or not source.type.is_float:
        return source
    width = source.rows(0, 1).shape[1]

    def compute(start: int, stop: int) -> Bytes:
        old = source.rows(min(start, source.n_rows), min(stop, source.n_rows))
        new = np.zeros((stop - start - len(old), width), np.uint8)
        return np.ascontiguousarray(np.concatenate([old, new]))

    return Computed(source.name, (rows, source.columns), source.type, compute, [])


def _mean_row(source: TensorSource) -> Bytes:
    from loragraft.quants import native  # and with it every NumPy quantizer: slow to import

    floats, total = widened(source), np.zeros(source.columns, np.float64)
    step = max(1, _CHUNK_WEIGHTS // source.columns)
    for start in range(0, source.n_rows, step):
        rows = floats.rows(start, min(start + step, source.n_rows))
        total += float_rows(rows, F32).sum(axis=0, dtype=np.float64)
    return native.quantize(np.asarray(total[None] / source.n_rows, np.float32), source.type)
