"""What lies on the device: weights as they are stored, small tensors as float32, adapters in one tensor that grows."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from loragraft.arrays import Floats
from loragraft.backends.gpu.memory import Memory
from loragraft.backends.gpu.weights import StoredWeights
from loragraft.backends.program import Weights
from loragraft.backends.triton.device import Device

_CHUNK = 32 << 20
"""Bytes that are read and uploaded at a time."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """uint8 [rows, row_bytes] of the type `kind`; `rows` of all experts one after the other."""

    kind: str
    rows: Any
    columns: int
    row_bytes: int


class DeviceWeights(StoredWeights):
    """The weights of a graph, each uploaded at its first use."""

    def __init__(self, device: Device, weights: Weights) -> None:
        from loragraft.backends.triton.kernels.blocks import PLANES

        super().__init__(weights, PLANES, device.name)
        self._device = device
        self._matrices: dict[str, Matrix] = {}
        self._small: dict[str, Any] = {}

    def matrix(self, name: str) -> Matrix:
        if name not in self._matrices:
            self._matrices[name] = self._upload(name)
        return self._matrices[name]

    def small(self, name: str) -> Any:
        """A norm, bias, scale or the like as a float32 tensor in its shape."""
        if name not in self._small:
            self._small[name] = self._device.tensor(self.floats(name))
        return self._small[name]

    def _upload(self, name: str) -> Matrix:
        kind, shape = self.kind(name), self._weights[name].shape
        total, row_bytes = prod(shape[:-1]), kind.row_bytes(shape[-1])
        rows = self._device.empty(total, row_bytes, kind="uint8")
        step = max(1, _CHUNK // row_bytes)
        for start in range(0, total, step):
            part = np.ascontiguousarray(self.rows(name, start, min(start + step, total)))
            stored = part.view(np.uint8).reshape(len(part), row_bytes)
            rows[start : start + step].copy_(self._device.of(stored))
        return Matrix(kind.name, rows, shape[-1], row_bytes)


class FloatMemory(Memory):
    """Float32 arrays in one tensor."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.tensor = device.empty(1 << 14)
        super().__init__(1 << 14)

    def _write(self, offset: int, values: Floats) -> None:
        with self._device.refusing():
            self.tensor[offset : offset + len(values)].copy_(self._device.of(values))

    def _grow(self, count: int) -> int:
        old = self.tensor
        size = max(2 * len(old), len(old) + count)
        with self._device.refusing():
            self.tensor = self._device.empty(size)
            self.tensor[: len(old)].copy_(old)
        return size
