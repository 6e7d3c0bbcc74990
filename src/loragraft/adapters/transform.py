"""Changes of a weight that multiply it, where LoRA adds: rows and columns scaled, rows turned.

    W' = diag(lengths) W M,    M: columns scaled, or a rotation of the input

A strength f is the part of the way: W + f (W' - W).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from loragraft.arrays import Floats


class Rotation(ABC):
    """A matrix M [in, in] that weights are multiplied by from the right, never made as a whole."""

    size: int
    """Columns of the weights."""

    @abstractmethod
    def apply(self, rows: Floats) -> Floats:
        """rows [n, in] times M."""

    @property
    @abstractmethod
    def arrays(self) -> tuple[Floats, ...]:
        """What it is made of."""


class Blocks(Rotation):
    """Block-diagonal: `blocks` [k, h, h], M = diag(blocks), in = k * h."""

    def __init__(self, blocks: Floats) -> None:
        self.blocks = blocks
        self.size = blocks.shape[0] * blocks.shape[1]

    def apply(self, rows: Floats) -> Floats:
        count, height = self.blocks.shape[:2]
        parts = rows.reshape(len(rows), count, height)
        turned = np.einsum("nkh,khc->nkc", parts, self.blocks, optimize=True)
        return np.ascontiguousarray(turned.reshape(len(rows), -1), np.float32)

    @property
    def arrays(self) -> tuple[Floats, ...]:
        return (self.blocks,)


class Reflections(Rotation):
    """Householder reflections one after the other: `units` [r, in] of length 1, M = prod (I - 2 u u^T)."""

    def __init__(self, units: Floats) -> None:
        self.units = units
        self.size = units.shape[1]

    def apply(self, rows: Floats) -> Floats:
        turned = rows.astype(np.float32, copy=True)
        for unit in self.units:
            turned -= 2 * (turned @ unit)[:, None] * unit
        return turned

    @property
    def arrays(self) -> tuple[Floats, ...]:
        return (self.units,)


@dataclass(frozen=True, slots=True)
class Transform:
    """What one adapter does to one weight [out, in], beside or instead of adding to it."""

    lengths: Floats | None = None
    """[out], of rows."""
    columns: Floats | None = None
    """[in]"""
    rotation: Rotation | None = None
    bias: str | None = None
    """The bias of the base that `lengths` scale too, which `adapters.rebase` does."""
    strength: float = 1.0

    @property
    def is_plain(self) -> bool:
        """Whether it is an addition."""
        return False

    def rows(self, matrix: int, chosen: slice | npt.NDArray[np.intp]) -> Transform:
        """The same for these rows of the weight."""
        return self if self.lengths is None else replace(self, lengths=self.lengths[chosen])

    def apply(self, weights: Floats) -> Floats:
        """Rows [n, in] as they become."""
        tuned = weights
        if self.columns is not None:
            tuned = tuned * self.columns
        if self.rotation is not None:
            tuned = self.rotation.apply(tuned)
        if self.lengths is not None:
            tuned = tuned * self.lengths[:, None]
        if self.strength == 1:
            return np.asarray(tuned, np.float32)
        return np.asarray(weights + np.float32(self.strength) * (tuned - weights), np.float32)

    @property
    def facts(self) -> tuple[object, ...]:
        """All of it but its arrays."""
        return "transform", type(self.rotation).__name__, self.strength, len(self.arrays)

    @property
    def arrays(self) -> tuple[Floats | None, ...]:
        """What it is made of."""
        return (self.lengths, self.columns, *(self.rotation.arrays if self.rotation is not None else ()))

    @property
    def changes(self) -> bool:
        """Whether it is anything but what leaves a weight as it is."""
        ones = all(array is None or bool((array == 1).all()) for array in (self.lengths, self.columns))
        return self.rotation is not None or not ones
