"""The weights of a graph as the native engine wants them: stored rows referenced, or packed once."""

from __future__ import annotations

from typing import Any

import numpy as np

from loragraft import _native
from loragraft.arrays import Floats
from loragraft.backends.program import Weights
from loragraft.errors import UnsupportedError
from loragraft.formats.source import TensorSource
from loragraft.quants.types import BY_NAME

engine = _native.engine


class EngineWeights:
    """What a program multiplies by. `pack`: give weights the layout that products with 8-bit activations are fastest
    in, at the cost of as much memory again as they take."""

    def __init__(self, weights: Weights, *, pack: bool) -> None:
        self._weights = weights
        self._arena = engine.Arena() if pack else None
        self._matrices: dict[str, Any] = {}
        self._ready: set[str] = set()

    def matrix(self, name: str) -> Any:
        """The kernels' view of a weight's rows as they are stored."""
        if name not in self._matrices:
            tensor = self._weights[name]
            if isinstance(tensor, TensorSource):
                if not engine.has_type(tensor.type.id):
                    raise UnsupportedError(name, "no native kernel for this tensor type", found=tensor.type)
                rows, kind = tensor.rows(0, tensor.n_rows), tensor.type.id
            else:
                tensor = np.ascontiguousarray(tensor, np.float32)
                rows, kind = tensor.reshape(-1, tensor.shape[-1]).view(np.uint8), BY_NAME["F32"].id
            experts = tensor.shape[0] if len(tensor.shape) == 3 else 1
            self._matrices[name] = engine.Weight(rows, kind, tensor.shape[-1], experts)
        return self._matrices[name]

    def packed(self, name: str, threads: engine.ThreadPool) -> Any:
        """As `matrix`, for products: where memory may be spent, in the engine's own layout if there is one, and floats
        in large pages."""
        weight, tensor = self.matrix(name), self._weights[name]
        if self._arena is None or name in self._ready:
            return weight
        self._ready.add(name)
        packed = weight.pack(threads, self._arena)
        if isinstance(tensor, TensorSource):
            if not packed and tensor.type.is_float:
                weight.move(threads, self._arena)
                packed = True
            if packed:
                # the file's pages are read no more, but for the rows of an embedding
                tensor.release(0, tensor.n_rows)
        return weight

    def floats(self, name: str) -> Floats:
        """A small tensor (norm, bias, scale, adapter) as float32 in its shape."""
        tensor = self._weights[name]
        if not isinstance(tensor, TensorSource):
            return np.ascontiguousarray(tensor, np.float32)
        values = np.empty((tensor.n_rows, tensor.columns), np.float32)
        self.matrix(name).gather(np.arange(tensor.n_rows, dtype=np.int32), values)
        return values.reshape(tensor.shape)
