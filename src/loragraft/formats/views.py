"""Tensors made of other tensors, row by row when they are asked for: conversion never holds a whole one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from loragraft.formats.source import Bytes, TensorSource
from loragraft.quants.types import F32, QuantType


class Stored(TensorSource):
    """A tensor that lies somewhere as it is; `data` gives all its bytes (a view of a mapped file) as uint8 [n]."""

    def __init__(
        self, name: str, shape: tuple[int, ...], type_: QuantType, data: Callable[[], Bytes]
    ) -> None:
        self.name, self.shape, self.type = name, shape, type_
        self._data = data

    def rows(self, start: int, stop: int) -> Bytes:
        _check_range(self, start, stop)
        return self._data().reshape(self.n_rows, self.row_bytes)[start:stop]


def in_memory(name: str, values: npt.NDArray[np.float32]) -> Stored:
    """A small float32 tensor that was computed."""
    data = np.ascontiguousarray(values, dtype="<f4")
    return Stored(name, data.shape, F32, lambda: data.reshape(-1).view(np.uint8))


class Reordered(TensorSource):
    """Row i is the source's row `order[i]`; `shape` holds as many rows as `order`. Near rows should stay near: a range
    of rows reads everything between the first and the last of its rows in the source."""

    def __init__(self, source: TensorSource, order: npt.NDArray[np.intp], shape: tuple[int, ...]) -> None:
        self.name, self.shape, self.type = source.name, shape, source.type
        self._source, self._order = source, order

    def rows(self, start: int, stop: int) -> Bytes:
        _check_range(self, start, stop)
        wanted = self._order[start:stop]
        if not len(wanted):
            return self._source.rows(0, 0)
        first = int(wanted.min())
        taken: Bytes = self._source.rows(first, int(wanted.max()) + 1)[wanted - first]
        return taken


class Stacked(TensorSource):
    """Sources of one shape and type along a new slowest axis: experts of a layer."""

    def __init__(self, name: str, sources: Sequence[TensorSource]) -> None:
        self.name, self.shape, self.type = name, (len(sources), *sources[0].shape), sources[0].type
        self._sources = sources

    def rows(self, start: int, stop: int) -> Bytes:
        _check_range(self, start, stop)
        each = self._sources[0].n_rows
        if start // each == (max(stop, start + 1) - 1) // each and start < self.n_rows:
            expert = start // each
            return self._sources[expert].rows(start - expert * each, stop - expert * each)
        out = np.empty((stop - start, self.row_bytes), np.uint8)
        for expert in range(start // each, -(-stop // each)):
            first, last = max(start, expert * each), min(stop, (expert + 1) * each)
            out[first - start : last - start] = self._sources[expert].rows(
                first - expert * each, last - expert * each
            )
        return out


class Computed(TensorSource):
    """Rows that a function makes: `compute(start, stop) -> uint8 [stop - start, row_bytes]`."""

    def __init__(
        self, name: str, shape: tuple[int, ...], type_: QuantType, compute: Callable[[int, int], Bytes]
    ) -> None:
        self.name, self.shape, self.type = name, shape, type_
        self._compute = compute

    def rows(self, start: int, stop: int) -> Bytes:
        _check_range(self, start, stop)
        return self._compute(start, stop)


def widened(source: TensorSource) -> TensorSource:
    """The same values as F32, from F16, BF16 or F64 (the last rounded)."""
    if source.type == F32:
        return source

    def compute(start: int, stop: int) -> Bytes:
        values = float_rows(source.rows(start, stop), source.type)
        return np.ascontiguousarray(values).view(np.uint8)

    return Computed(source.name, source.shape, F32, compute)


def float_rows(data: Bytes, type_: QuantType) -> npt.NDArray[np.float32]:
    """uint8 [n, row_bytes] of F32, F16, BF16 or F64 as float32 [n, columns]."""
    data = np.ascontiguousarray(data)
    if type_.name == "BF16":
        return (data.view("<u2").astype(np.uint32) << 16).view(np.float32)
    return data.view({"F32": "<f4", "F16": "<f2", "F64": "<f8"}[type_.name]).astype(np.float32, copy=False)


def _check_range(source: TensorSource, start: int, stop: int) -> None:
    if not 0 <= start <= stop <= source.n_rows:
        raise IndexError(f"rows [{start}, {stop}) of {source.name}, which has {source.n_rows}")
