"""Tensors made of other tensors, row by row when they are asked for: conversion never holds a whole one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from loragraft import _native
from loragraft.arrays import Bytes
from loragraft.formats.source import TensorSource
from loragraft.quants.types import F32, QuantType


class ByteSource(Protocol):
    """Where a tensor's bytes lie; ranges are in bytes."""

    def part(self, start: int, stop: int) -> Bytes:
        """Bytes [start, stop): uint8 [stop - start]."""

    def prefetch(self, start: int, stop: int) -> None: ...

    def release(self, start: int, stop: int) -> None: ...


class Stored(TensorSource):
    """A tensor that lies somewhere as it is, row after row."""

    def __init__(self, name: str, shape: tuple[int, ...], type_: QuantType, where: ByteSource) -> None:
        self.name, self.shape, self.type = name, shape, type_
        self._where = where

    def rows(self, start: int, stop: int) -> Bytes:
        _check_range(self, start, stop)
        part = self._where.part(start * self.row_bytes, stop * self.row_bytes)
        return part.reshape(stop - start, self.row_bytes)

    def prefetch(self, start: int, stop: int) -> None:
        self._where.prefetch(start * self.row_bytes, stop * self.row_bytes)

    def release(self, start: int, stop: int) -> None:
        self._where.release(start * self.row_bytes, stop * self.row_bytes)


def in_memory(name: str, values: npt.NDArray[np.float32]) -> TensorSource:
    """A small float32 tensor that was computed."""
    data = np.ascontiguousarray(values, dtype="<f4")
    rows = data.reshape(-1, data.shape[-1]).view(np.uint8)
    return Computed(name, data.shape, F32, lambda start, stop: rows[start:stop])


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

    def prefetch(self, start: int, stop: int) -> None:
        if stop > start:
            self._source.prefetch(*self._span(start, stop))

    def release(self, start: int, stop: int) -> None:
        if stop > start:
            self._source.release(*self._span(start, stop))

    def _span(self, start: int, stop: int) -> tuple[int, int]:
        wanted = self._order[start:stop]
        return int(wanted.min()), int(wanted.max()) + 1


class Stacked(TensorSource):
    """Sources of one shape and type along a new slowest axis: experts of a layer."""

    def __init__(self, name: str, sources: Sequence[TensorSource]) -> None:
        self.name, self.shape, self.type = name, (len(sources), *sources[0].shape), sources[0].type
        self._sources = sources

    def rows(self, start: int, stop: int) -> Bytes:
        _check_range(self, start, stop)
        parts = [self._sources[expert].rows(*span) for expert, span in self._spans(start, stop)]
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else np.empty((0, self.row_bytes), np.uint8)

    def prefetch(self, start: int, stop: int) -> None:
        for expert, span in self._spans(start, stop):
            self._sources[expert].prefetch(*span)

    def release(self, start: int, stop: int) -> None:
        for expert, span in self._spans(start, stop):
            self._sources[expert].release(*span)

    def _spans(self, start: int, stop: int) -> Iterator[tuple[int, tuple[int, int]]]:
        """Each source that holds some of the rows, and which of its own rows they are."""
        each = self._sources[0].n_rows
        for expert in range(start // each, -(-stop // each)):
            first = expert * each
            yield expert, (max(start, first) - first, min(stop, first + each) - first)


class Joined(TensorSource):
    """Sources of as many columns and one type, one's rows below the other's."""

    def __init__(self, name: str, sources: Sequence[TensorSource]) -> None:
        rows = sum(source.n_rows for source in sources)
        self.name, self.shape, self.type = name, (rows, sources[0].columns), sources[0].type
        self._sources = sources

    def rows(self, start: int, stop: int) -> Bytes:
        _check_range(self, start, stop)
        parts = [source.rows(*span) for source, span in self._spans(start, stop)]
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else np.empty((0, self.row_bytes), np.uint8)

    def prefetch(self, start: int, stop: int) -> None:
        for source, span in self._spans(start, stop):
            source.prefetch(*span)

    def release(self, start: int, stop: int) -> None:
        for source, span in self._spans(start, stop):
            source.release(*span)

    def _spans(self, start: int, stop: int) -> Iterator[tuple[TensorSource, tuple[int, int]]]:
        first = 0
        for source in self._sources:
            span = max(start - first, 0), min(stop - first, source.n_rows)
            if span[0] < span[1]:
                yield source, span
            first += source.n_rows


#: A value of a type of floats, as its bits.
_BITS = {"F32": "<u4", "F16": "<u2", "BF16": "<u2", "F64": "<u8"}


class Transposed(TensorSource):
    """Floats [..., a, b] as [..., b, a]. Any rows of a matrix need all of its source's."""

    def __init__(self, source: TensorSource) -> None:
        *stack, a, b = source.shape
        self.name, self.shape, self.type = source.name, (*stack, b, a), source.type
        self._source, self._bits = source, _BITS[source.type.name]

    def rows(self, start: int, stop: int) -> Bytes:
        _check_range(self, start, stop)
        b, a = self.shape[-2:]
        parts = []
        for matrix in range(start // b, -(-stop // b)):
            bits = self._source.rows(matrix * a, (matrix + 1) * a).view(self._bits)
            parts.append(bits[:, max(start - matrix * b, 0) : stop - matrix * b].T)
        joined = np.concatenate(parts) if parts else np.empty((0, a), self._bits)
        return np.ascontiguousarray(joined).view(np.uint8)


class ReorderedColumns(TensorSource):
    """Floats whose column i is the source's column `order[i]`."""

    def __init__(self, source: TensorSource, order: npt.NDArray[np.intp]) -> None:
        self.name, self.shape, self.type = source.name, (*source.shape[:-1], len(order)), source.type
        self._source, self._order, self._bits = source, order, _BITS[source.type.name]

    def rows(self, start: int, stop: int) -> Bytes:
        return np.ascontiguousarray(self._source.rows(start, stop).view(self._bits)[:, self._order]).view(
            np.uint8
        )

    def prefetch(self, start: int, stop: int) -> None:
        self._source.prefetch(start, stop)

    def release(self, start: int, stop: int) -> None:
        self._source.release(start, stop)


class Computed(TensorSource):
    """Rows that a function makes of the same rows of others: `compute(start, stop)` -> uint8 [stop - start,
    row_bytes]; `of` are these others."""

    def __init__(
        self,
        name: str,
        shape: tuple[int, ...],
        type_: QuantType,
        compute: Callable[[int, int], Bytes],
        of: Sequence[TensorSource] = (),
    ) -> None:
        self.name, self.shape, self.type = name, shape, type_
        self._compute, self._of = compute, of

    def rows(self, start: int, stop: int) -> Bytes:
        _check_range(self, start, stop)
        return self._compute(start, stop)

    def prefetch(self, start: int, stop: int) -> None:
        for source in self._of:
            source.prefetch(start, stop)

    def release(self, start: int, stop: int) -> None:
        for source in self._of:
            source.release(start, stop)


def widened(source: TensorSource) -> TensorSource:
    """The same values as F32: floats of another width (F64 is rounded), or quantized weights dequantized."""
    if source.type == F32:
        return source

    def compute(start: int, stop: int) -> Bytes:
        data = source.rows(start, stop)
        if source.type.is_float or source.type.name == "F64":
            values = float_rows(data, source.type)
        else:
            values = np.empty((stop - start, source.columns), np.float32)
            _native.dequantize(np.ascontiguousarray(data), values, source.type.id, "")
        return np.ascontiguousarray(values).view(np.uint8)

    return Computed(source.name, source.shape, F32, compute, [source])


def values_of(source: TensorSource) -> npt.NDArray[np.float32]:
    """All values of a small tensor, as float32 in its shape."""
    return widened(source).rows(0, source.n_rows).view(np.float32).reshape(source.shape)


def float_rows(data: Bytes, type_: QuantType) -> npt.NDArray[np.float32]:
    """uint8 [n, row_bytes] of F32, F16, BF16 or F64 as float32 [n, columns]."""
    data = np.ascontiguousarray(data)
    if type_.name == "BF16":
        return (data.view("<u2").astype(np.uint32) << 16).view(np.float32)
    return data.view({"F32": "<f4", "F16": "<f2", "F64": "<f8"}[type_.name]).astype(np.float32, copy=False)


def _check_range(source: TensorSource, start: int, stop: int) -> None:
    if not 0 <= start <= stop <= source.n_rows:
        raise IndexError(f"rows [{start}, {stop}) of {source.name}, which has {source.n_rows}")
