"""The arithmetic of adapter deltas, bit for bit: what `native/delta.cpp` computes, in NumPy.

Source: Hu et al. 2021 (arXiv 2106.09685), W' = W + s B A. The sum over the rank runs in order, every operation is
rounded to float32 and none are fused, so that the result depends neither on chunks nor on threads nor on the machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from loragraft.adapters.lora import Floats


@dataclass(frozen=True, slots=True)
class Delta:
    """scale * b a for one matrix or a stack of them: a [..., r, in], b [..., out, r], the same leading axes."""

    a: Floats
    b: Floats
    scale: float

    def matrix(self, index: int) -> tuple[Floats, Floats]:
        """a [r, in] and b [out, r] of matrix `index` of the stack (0 if there is only one)."""
        return self.a.reshape(-1, *self.a.shape[-2:])[index], self.b.reshape(-1, *self.b.shape[-2:])[index]


def add_deltas(weights: Floats, deltas: Sequence[Delta]) -> Floats:
    """weights [..., out, in] plus every delta, one after another."""
    merged = np.array(weights, dtype=np.float32)
    for delta in deltas:
        total = np.zeros_like(merged)
        for k in range(delta.a.shape[-2]):
            total += delta.b[..., :, k : k + 1] * delta.a[..., k : k + 1, :]
        merged = merged + np.float32(delta.scale) * total
    return merged


def same_deltas(these: Sequence[Delta], those: Sequence[Delta]) -> bool:
    """Whether both change a weight alike."""
    return len(these) == len(those) and all(
        x.scale == y.scale and np.array_equal(x.a, y.a) and np.array_equal(x.b, y.b)
        for x, y in zip(these, those, strict=True)
    )
