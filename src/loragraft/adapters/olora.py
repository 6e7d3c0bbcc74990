"""OLoRA: adapters that were trained beside a base from which their initialisation had been taken out.

Büyükakyüz 2024 (arXiv 2406.01775), peft/tuners/lora/layer.py `olora_init`: with W = Q R, B starts as the first r
columns of Q, A as the first r rows of R, and W becomes W - s Q_r R_r. An adapter saved as it is thus belongs to that
other base. Unlike what PiSSA, CorDA, LoRA-GA and LoftQ take out, this can be recomputed cheaply: a Householder QR meets
the columns in order, so Q_r is that of the first r columns alone, and R_r = Q_r^T W.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from loragraft.adapters.lora import LoraPair
from loragraft.formats.source import TensorSource
from loragraft.formats.views import widened

_CHUNK_WEIGHTS = 1 << 20


def for_the_original(pair: LoraPair, weight: TensorSource) -> LoraPair:
    """The pair of rank 2r that does to `weight` [out, in] what `pair` does to W - s Q_r R_r. Reads the weight twice."""
    floats, step = widened(weight), max(1, _CHUNK_WEIGHTS // weight.columns)
    spans = [(start, min(start + step, weight.n_rows)) for start in range(0, weight.n_rows, step)]
    columns = np.concatenate([floats.rows(*span).view(np.float32)[:, : pair.rank] for span in spans])
    q = np.linalg.qr(columns.astype(np.float64))[0]
    r = sum(q[slice(*span)].T @ floats.rows(*span).view(np.float32) for span in spans)
    a = np.concatenate([pair.a, np.asarray(r, np.float32)])
    b = np.concatenate([pair.b, -q.astype(np.float32)], axis=1)
    return replace(pair, a=a, b=np.ascontiguousarray(b))
