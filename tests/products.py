"""Products of the native engine's kernels, for tests of what they return."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from loragraft import _native
from loragraft.arrays import Bytes, Floats
from loragraft.quants import native, reference
from loragraft.quants.types import BY_NAME, QuantType

engine = _native.engine

TYPES = [kind for kind in BY_NAME.values() if engine.has_type(kind.id)]


def random_weight(kind: QuantType, rng: np.random.Generator, columns: int, rows: int) -> Bytes:
    w = rng.standard_normal((rows, columns), dtype=np.float32) / 16
    importance = np.ones(columns, np.float32)
    quantize = native.quantize if native.supports(kind) else reference.quantize
    return quantize(w, kind, importance)


class Product:
    """A weight [experts, rows, columns] and the threads that multiply by it; `q8`: packed, for 8-bit activations."""

    def __init__(
        self, kind: QuantType, data: Bytes, columns: int, *, q8: bool, threads: int = 2, experts: int = 1
    ) -> None:
        self.pool = engine.ThreadPool(threads)
        self.weight = engine.Weight(data, kind.id, columns, experts)
        self.rows = len(data) // experts
        self.q8 = q8
        self._arena = engine.Arena()
        if q8:
            self.weight.pack(self.pool, self._arena)

    def __call__(self, x: Floats) -> Floats:
        y = np.full((len(x), self.rows), np.nan, np.float32)
        engine.multiply(self.pool, self.weight, x, y, self.q8)
        return y

    def routed(self, x: Floats, ids: npt.NDArray[np.int32]) -> Floats:
        """Row p: expert ids[p]'s product with row p // (len(ids) // len(x)) of x."""
        y = np.full((len(ids), self.rows), np.nan, np.float32)
        engine.multiply(self.pool, self.weight, x, y, self.q8, ids)
        return y
