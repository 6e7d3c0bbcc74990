"""How large what an adapter adds is, beside what it is added to: Frobenius norms, tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from loragraft.adapters.collect import collect_deltas
from loragraft.adapters.delta import Change, Delta, combine
from loragraft.adapters.lora import EMBEDDING, OUTPUT, Adapter
from loragraft.adapters.rebase import rebase
from loragraft.arrays import Floats
from loragraft.formats.gguf.scales import scale_of
from loragraft.formats.source import ModelSource, TensorSource
from loragraft.formats.views import float_rows, widened
from loragraft.quants.roles import layer_of
from loragraft.quants.types import F32

_CHUNK_WEIGHTS = 1 << 18


@dataclass(frozen=True, slots=True)
class TargetNorm:
    """One tensor of the base: the norms of what the adapter changes in it, and of what it was."""

    target: str
    rank: int
    """Of the pair; 0 for a tensor that is replaced, or a bias."""
    scale: float
    """The pair's own, alpha / r or what stands for it; 1 without a pair."""
    delta: float
    weight: float

    @property
    def relative(self) -> float:
        return self.delta / self.weight if self.weight else float("inf") if self.delta else 0.0


def target_norms(base: ModelSource, adapter: Adapter, strength: float) -> list[TargetNorm]:
    """The norms of every tensor of `base` that `adapter` has something for, layer by layer. Reads these tensors once.
    Raises AdapterError for an adapter that does not fit."""
    tuned, deltas = collect_deltas(rebase(base, [(adapter, strength)]), [(adapter, strength)])
    order = {name: number for number, name in enumerate(tuned.tensors)}
    names = sorted(
        {*deltas, *adapter.replaced, *adapter.rows, *adapter.biases} & order.keys(),
        key=lambda name: (layer_of(name), order[name]),
    )

    def measure(name: str) -> TargetNorm:
        before = base.tensors.get(name) or (base.tensors.get(EMBEDDING) if name == OUTPUT else None)
        delta, weight = _norms(base, before, tuned, tuned.tensors[name], deltas.get(name, ()))
        pair = adapter.pairs.get(name)
        return TargetNorm(name, pair.rank if pair else 0, pair.scale if pair else 1.0, delta, weight)

    with ThreadPoolExecutor() as pool:
        return list(pool.map(measure, names))


def _norms(
    base: ModelSource,
    before: TensorSource | None,
    tuned: ModelSource,
    after: TensorSource,
    deltas: Sequence[Change],
) -> tuple[float, float]:
    """Norms of the change and of what was there (0 for a tensor that is new; one of other rows is new)."""
    fits = before is not None and before.shape == after.shape
    then = _Rows(base.tensors, before) if fits and before is not None else None
    now = _Rows(tuned.tensors, after)
    rows = after.shape[-2] if len(after.shape) > 1 else 1
    step = max(1, _CHUNK_WEIGHTS // after.columns)
    change = weight = 0.0
    for matrix in range(after.n_rows // rows):
        for start in range(0, rows, step):
            own = slice(start, min(start + step, rows))
            w = now.floats(matrix * rows + own.start, matrix * rows + own.stop)
            sum_ = combine(w, [delta.rows(matrix, own) for delta in deltas], _add)
            old = (
                then.floats(matrix * rows + own.start, matrix * rows + own.stop) if then else np.zeros_like(w)
            )
            change += float(np.square(sum_ - old, dtype=np.float64).sum())
            weight += float(np.square(old, dtype=np.float64).sum())
    return change**0.5, weight**0.5


def _add(rows: Floats, delta: Delta) -> Floats:
    return np.asarray(rows + np.float32(delta.scale) * (delta.b @ delta.a), np.float32)


class _Rows:
    """Rows of a tensor as float32, its per-tensor scale multiplied in."""

    def __init__(self, tensors: Mapping[str, TensorSource], source: TensorSource) -> None:
        self._floats = widened(source)
        scale = tensors.get(scale_of(source.name, tensors) or "")
        self._scales = (
            None if scale is None else float_rows(scale.rows(0, scale.n_rows), scale.type).reshape(-1)
        )

    def floats(self, start: int, stop: int) -> Floats:
        rows = float_rows(self._floats.rows(start, stop), F32)
        if self._scales is None:
            return rows
        each = self._floats.n_rows // len(self._scales)
        return np.asarray(rows * self._scales[np.arange(start, stop) // each][:, None], np.float32)
