"""What lies on the device: weights in parts that a kernel can see whole, small tensors side by side, adapters."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from loragraft.arrays import Floats
from loragraft.backends.gpu.memory import Memory
from loragraft.backends.gpu.weights import StoredWeights
from loragraft.backends.program import Weights
from loragraft.backends.webgpu.device import Device
from loragraft.backends.webgpu.shaders import octets
from loragraft.errors import UnsupportedError
from loragraft.quants.types import QuantType
from loragraft.units import bytes_text

_CHUNK = 8 << 20


@dataclass(frozen=True, slots=True)
class Part:
    """Rows [first, first + rows) of a weight, of all its experts one after the other; `group` binds them."""

    first: int
    rows: int
    group: Any


@dataclass(frozen=True, slots=True)
class Matrix:
    """A weight on the device, in rows of `row_bytes` of the type `kind`."""

    kind: QuantType
    columns: int
    row_bytes: int
    parts: tuple[Part, ...]


class DeviceWeights(StoredWeights):
    """The weights of a graph. Those of a type that no kernel reads become F16, one range of rows at a time."""

    def __init__(self, device: Device, weights: Weights) -> None:
        super().__init__(weights, octets(), device.name)
        self._device = device
        self._matrices: dict[str, Matrix] = {}

    def check(self, names: list[str], room: int | None) -> None:
        """Raises UnsupportedError, before anything is uploaded, for what does not fit `room` bytes or one buffer."""
        self.check_room(names, room)
        for name in names:
            row = self.kind(name).row_bytes(self._weights[name].shape[-1])
            if row * 4 > self._device.binding_bytes:
                raise UnsupportedError(
                    name,
                    f"has rows that do not fit a buffer of {self._device.name}",
                    found=bytes_text(row),
                    hint="use --device cpu",
                )

    def matrix(self, name: str) -> Matrix:
        """The weight `name`, uploaded at its first use."""
        if name not in self._matrices:
            self._matrices[name] = self._upload(name)
        return self._matrices[name]

    def _upload(self, name: str) -> Matrix:
        kind = self.kind(name)
        shape = self._weights[name].shape
        columns, total = shape[-1], prod(shape[:-1])
        row_bytes = kind.row_bytes(columns)
        # Whole rows in whole words; the last octet of the last row may be read past its end.
        most = max(4, _part_bytes(self._device) // row_bytes // 4 * 4)
        parts = []
        for first in range(0, total, most):
            rows = min(most, total - first)
            buffer = self._device.buffer(rows * row_bytes + 32, name)
            step = max(4, _CHUNK // row_bytes // 4 * 4)
            for start in range(first, first + rows, step):
                stop = min(start + step, first + rows)
                self._device.write(buffer, (start - first) * row_bytes, self.rows(name, start, stop))
            parts.append(Part(first, rows, self._device.bound(self._device.data["read"], buffer)))
        return Matrix(kind, columns, row_bytes, tuple(parts))


def _part_bytes(device: Device) -> int:
    return device.binding_bytes - 256


class Constants:
    """Small tensors in one buffer, as float32; `offset` says where each begins."""

    def __init__(self, weights: DeviceWeights) -> None:
        self._weights = weights
        self._offsets: dict[str, int] = {}
        self._parts: list[Floats] = []
        self._size = 0

    def offset(self, name: str) -> int:
        if name not in self._offsets:
            self._offsets[name] = self.add(self._weights.floats(name).reshape(-1))
        return self._offsets[name]

    def add(self, values: Floats) -> int:
        """Where these numbers begin."""
        start = self._size
        self._parts.append(values)
        self._size += len(values)
        return start

    def upload(self, device: Device) -> Any:
        buffer = device.buffer(self._size * 4, "the norms, biases and scales of the model")
        if self._parts:
            device.write(buffer, 0, np.concatenate(self._parts))
        return buffer


class FloatMemory(Memory):
    """Float32 arrays in one buffer."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.buffer = device.buffer(1 << 16, "adapters")
        super().__init__(self.buffer.size // 4)

    def _write(self, offset: int, values: Floats) -> None:
        self._device.write(self.buffer, offset * 4, values)

    def _grow(self, count: int) -> int:
        old = self.buffer
        size = max(old.size * 2, old.size + count * 4)
        if size > self._device.binding_bytes:
            size = old.size + count * 4  # no more than needed, or the error says what is missing
        self.buffer = self._device.buffer(size, "the adapters, all together,")
        with self._device.refusing():
            encoder = self._device.gpu.create_command_encoder()
            encoder.copy_buffer_to_buffer(old, 0, self.buffer, 0, old.size)
            self._device.queue.submit([encoder.finish()])
        return int(self.buffer.size) // 4
