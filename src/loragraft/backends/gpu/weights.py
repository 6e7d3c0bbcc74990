"""The weights of a graph as a GPU keeps them: in the file's type if a kernel reads it, else as F16."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from loragraft import _native
from loragraft.arrays import Floats
from loragraft.backends.plan import EmbedStep, LinearStep, Step
from loragraft.backends.program import Weights
from loragraft.errors import UnsupportedError
from loragraft.formats.source import TensorSource
from loragraft.formats.views import values_of
from loragraft.quants.types import F16, F32, QuantType
from loragraft.units import bytes_text, plural

_F16_MAX = 65504.0


class StoredWeights:
    """`known`: the names of the types that the kernels read. `device`: what it is called in errors."""

    def __init__(self, weights: Weights, known: Collection[str], device: str) -> None:
        self._weights, self._known, self._name = weights, known, device
        self.converted: dict[str, str] = {}
        """Weights that are kept as F16, and their types."""

    def kind(self, name: str) -> QuantType:
        """What the weight is kept as."""
        tensor = self._weights[name]
        if not isinstance(tensor, TensorSource):
            return F32
        return tensor.type if tensor.type.name in self._known else F16

    def nbytes(self, name: str) -> int:
        """What it takes on the device."""
        shape = self._weights[name].shape
        return prod(shape[:-1]) * self.kind(name).row_bytes(shape[-1])

    def check_room(self, names: Iterable[str], room: int | None) -> None:
        """Raises UnsupportedError, before anything is uploaded, if the weights `names` do not fit `room` bytes."""
        needed = sum(self.nbytes(name) for name in dict.fromkeys(names))
        if room is not None and needed > room:
            raise UnsupportedError(
                "the weights",
                f"do not fit the memory of {self._name}",
                found=bytes_text(needed),
                expected=f"up to {bytes_text(room)}",
                hint="quantize the model to a smaller type (loragraft quantize), or use --device cpu",
            )

    def floats(self, name: str) -> Floats:
        """A small tensor (norm, bias, scale) as float32 in its shape."""
        tensor = self._weights[name]
        if isinstance(tensor, TensorSource):
            return np.array(values_of(tensor), np.float32)
        return np.ascontiguousarray(tensor, np.float32)

    def one(self, scale: str | float | None) -> float:
        """A scale that may be a tensor [1]."""
        if isinstance(scale, str):
            return float(self.floats(scale).reshape(-1)[0])
        return 1.0 if scale is None else scale

    def rows(self, name: str, start: int, stop: int) -> npt.NDArray[Any]:
        """Rows [start, stop) in the type that they are kept as. Raises UnsupportedError for numbers beyond F16's range
        in a type that becomes F16."""
        tensor = self._weights[name]
        if not isinstance(tensor, TensorSource):
            return np.asarray(tensor, np.float32).reshape(-1, tensor.shape[-1])[start:stop]
        data = tensor.rows(start, stop)
        if self.kind(name) != tensor.type:
            self.converted[name] = tensor.type.name
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

    def notes(self) -> list[str]:
        """What is said of the weights that the device keeps in another type than the file."""
        names = ", ".join(sorted(set(self.converted.values())))
        count = len(self.converted)
        return [f"{plural(count, 'weight')} of type {names}: kept as F16 on the GPU"] if count else []


def matrices_of(steps: Iterable[Step]) -> list[str]:
    """The weights that the steps multiply by or look up."""
    names: list[str] = []
    for step in steps:
        if isinstance(step, LinearStep):
            names += [linear.weight for linear in step.linears]
        elif isinstance(step, EmbedStep):
            names.append(step.weight)
    return names
