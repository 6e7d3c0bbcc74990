"""What lies on the device: weights in parts that a kernel can see whole, small tensors side by side, a memory that
grows and is given out in ranges."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from loragraft import _native
from loragraft.backends.batch import Floats
from loragraft.backends.program import Weights
from loragraft.backends.webgpu.device import Device
from loragraft.backends.webgpu.shaders import octets
from loragraft.errors import UnsupportedError
from loragraft.formats.source import TensorSource
from loragraft.formats.views import values_of
from loragraft.quants.types import F16, F32, QuantType
from loragraft.units import bytes_text

_CHUNK = 8 << 20
_F16_MAX = 65504.0


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


class DeviceWeights:
    """The weights of a graph. Those of a type that no kernel reads become F16, one range of rows at a time."""

    def __init__(self, device: Device, weights: Weights) -> None:
        self._device, self._weights = device, weights
        self._matrices: dict[str, Matrix] = {}
        self.converted: dict[str, str] = {}
        """Weights that are kept as F16, and their types."""

    def kind(self, name: str) -> QuantType:
        """What the weight is kept as."""
        tensor = self._weights[name]
        if not isinstance(tensor, TensorSource):
            return F32
        return tensor.type if tensor.type.name in octets() else F16

    def nbytes(self, name: str) -> int:
        """What it takes on the device."""
        tensor = self._weights[name]
        return int(np.prod(tensor.shape[:-1], dtype=np.int64)) * self.kind(name).row_bytes(tensor.shape[-1])

    def check(self, names: list[str], room: int | None) -> None:
        """Raises UnsupportedError, before anything is uploaded, if the weights `names` do not fit `room` bytes."""
        needed = sum(self.nbytes(name) for name in dict.fromkeys(names))
        if room is not None and needed > room:
            raise UnsupportedError(
                "the weights",
                f"do not fit the memory of {self._device.name}",
                found=bytes_text(needed),
                expected=f"up to {bytes_text(room)}",
                hint="quantize the model to a smaller type (loragraft quantize), or use --device cpu",
            )
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

    def floats(self, name: str) -> Floats:
        """A small tensor (norm, bias, scale) as float32 in its shape."""
        tensor = self._weights[name]
        if isinstance(tensor, TensorSource):
            return np.array(values_of(tensor), np.float32)
        return np.ascontiguousarray(tensor, np.float32)

    def _upload(self, name: str) -> Matrix:
        kind = self.kind(name)
        tensor = self._weights[name]
        columns = tensor.shape[-1]
        total, row_bytes = int(np.prod(tensor.shape[:-1], dtype=np.int64)), kind.row_bytes(columns)
        if isinstance(tensor, TensorSource) and tensor.type != kind:
            self.converted[name] = tensor.type.name
        # Whole rows in whole words; the last octet of the last row may be read past its end.
        most = max(4, _part_bytes(self._device) // row_bytes // 4 * 4)
        parts = []
        for first in range(0, total, most):
            rows = min(most, total - first)
            buffer = self._device.buffer(rows * row_bytes + 32, name)
            step = max(4, _CHUNK // row_bytes // 4 * 4)
            for start in range(first, first + rows, step):
                stop = min(start + step, first + rows)
                self._device.write(buffer, (start - first) * row_bytes, self._rows(name, start, stop))
            parts.append(Part(first, rows, self._device.bound(self._device.data["read"], buffer)))
        return Matrix(kind, columns, row_bytes, tuple(parts))

    def _rows(self, name: str, start: int, stop: int) -> npt.NDArray[Any]:
        tensor = self._weights[name]
        if not isinstance(tensor, TensorSource):
            return np.asarray(tensor, np.float32).reshape(-1, tensor.shape[-1])[start:stop]
        data = tensor.rows(start, stop)
        if tensor.type.name not in octets():
            values = np.empty((stop - start, tensor.columns), np.float32)
            _native.dequantize(np.ascontiguousarray(data), values, tensor.type.id, "")
            if np.abs(values).max(initial=0) > _F16_MAX:
                raise UnsupportedError(
                    name,
                    f"of type {tensor.type}, which this device keeps as F16, has weights beyond it",
                    found=float(np.abs(values).max()),
                    hint="use --device cpu",
                )
            data = values.astype(np.float16)
        else:
            data = np.array(data)
        tensor.release(start, stop)
        return data


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
            values = self._weights.floats(name).reshape(-1)
            self._offsets[name] = self._size
            self._parts.append(values)
            self._size += len(values)
        return self._offsets[name]

    def upload(self, device: Device) -> Any:
        buffer = device.buffer(self._size * 4, "the norms, biases and scales of the model")
        if self._parts:
            device.write(buffer, 0, np.concatenate(self._parts))
        return buffer


class FloatMemory:
    """Float32 arrays in one buffer that grows; what is freed is given out again."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.buffer = device.buffer(1 << 16, "adapters")
        self._free: list[tuple[int, int]] = [(0, self.buffer.size // 4)]
        """Offset and floats, in order, none next to another."""
        self._held: dict[int, int] = {}

    def add(self, values: Floats) -> int:
        """Where `values` now lie, in floats. Raises UnsupportedError if there is no room."""
        flat = np.ascontiguousarray(values, np.float32).reshape(-1)
        offset = self._take(max(1, len(flat)))
        self._device.write(self.buffer, offset * 4, flat)
        return offset

    def drop(self, offset: int) -> None:
        self._free = list(_merged(sorted([*self._free, (offset, self._held.pop(offset))])))

    def _take(self, count: int) -> int:
        for place, (offset, size) in enumerate(self._free):
            if size >= count:
                self._free[place : place + 1] = [(offset + count, size - count)] if size > count else []
                self._held[offset] = count
                return offset
        self._grow(count)
        return self._take(count)

    def _grow(self, count: int) -> None:
        old = self.buffer
        size = max(old.size * 2, old.size + count * 4)
        if size > self._device.binding_bytes:
            size = old.size + count * 4  # no more than needed, or the error says what is missing
        self.buffer = self._device.buffer(size, "the adapters, all together,")
        with self._device.refusing():
            encoder = self._device.gpu.create_command_encoder()
            encoder.copy_buffer_to_buffer(old, 0, self.buffer, 0, old.size)
            self._device.queue.submit([encoder.finish()])
        self._free = list(_merged(sorted([*self._free, (old.size // 4, (self.buffer.size - old.size) // 4)])))


def _merged(ranges: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    start, size = ranges[0]
    for offset, more in ranges[1:]:
        if offset == start + size:
            size += more
        else:
            yield start, size
            start, size = offset, more
    yield start, size
