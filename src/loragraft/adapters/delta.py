"""The arithmetic of adapter deltas, bit for bit: what `native/quant/delta.cpp` computes, in NumPy.

Source: Hu et al. 2021 (arXiv 2106.09685), W' = W + s B A. The sum over the rank runs in order, every operation is
rounded to float32 and none are fused, so that the result depends neither on chunks nor on threads nor on the machine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from loragraft.adapters.dora import length_factors
from loragraft.adapters.transform import Transform
from loragraft.arrays import Floats


@dataclass(frozen=True, slots=True)
class Delta:
    """scale * b a for one matrix or a stack of them: a [..., r, in], b [..., out, r], the same leading axes.

    With a `magnitude` [..., out] it is DoRA's (`adapters.dora`), and `strength` is the part of the way that the weight
    goes to what it makes of it; without, the strength is in the scale.
    """

    a: Floats
    b: Floats
    scale: float
    magnitude: Floats | None = None
    strength: float = 1.0

    def rows(self, matrix: int, chosen: slice | npt.NDArray[np.intp]) -> Delta:
        """Of matrix `matrix` of the stack (0 if there is only one) these rows."""
        b = np.ascontiguousarray(self.b.reshape(-1, *self.b.shape[-2:])[matrix][chosen])
        own = self.magnitude
        if own is not None:
            own = own.reshape(-1, self.b.shape[-2])[matrix][chosen]
        return replace(self, a=self.a.reshape(-1, *self.a.shape[-2:])[matrix], b=b, magnitude=own)

    @property
    def is_plain(self) -> bool:
        """Whether it is an addition."""
        return self.magnitude is None

    @property
    def facts(self) -> tuple[object, ...]:
        """All of it but its arrays."""
        return "delta", self.scale, self.strength

    @property
    def arrays(self) -> tuple[Floats | None, ...]:
        """What it is made of."""
        return self.a, self.b, self.magnitude


Change = Delta | Transform
"""What an adapter does to a weight."""

Add = Callable[[Floats, Delta], Floats]
"""(rows, delta without a magnitude) -> rows + scale * b a"""


def add_deltas(weights: Floats, deltas: Sequence[Change]) -> Floats:
    """weights [..., out, in] with every change, one after another."""
    return combine(np.array(weights, dtype=np.float32), deltas, _add)


def combine(weights: Floats, deltas: Sequence[Change], add: Add) -> Floats:
    """`weights` changed by every delta in turn, `add` doing the sums. DoRA rescales what is there when its turn comes,
    as in PEFT, where merging and running agree on that."""
    merged = weights
    for delta in deltas:
        if isinstance(delta, Transform):
            merged = delta.apply(merged)
            continue
        added = add(merged, delta)
        if delta.magnitude is None:
            merged = added
            continue
        alone = added if merged is weights else add(weights, delta)
        tuned = added * length_factors(delta.magnitude, alone)[..., None]
        strength = np.float32(delta.strength)
        merged = tuned if strength == 1 else merged + strength * (tuned - merged)
    return merged


def _add(weights: Floats, delta: Delta) -> Floats:
    total = np.zeros_like(weights)
    for k in range(delta.a.shape[-2]):
        total += delta.b[..., :, k : k + 1] * delta.a[..., k : k + 1, :]
    return np.asarray(weights + np.float32(delta.scale) * total)


def same_deltas(these: Sequence[Change], those: Sequence[Change]) -> bool:
    """Whether both change a weight alike."""
    return len(these) == len(those) and all(_same(x, y) for x, y in zip(these, those, strict=True))


def _same(x: Change, y: Change) -> bool:
    return x.facts == y.facts and all(
        (one is None) == (other is None) and (one is None or other is None or np.array_equal(one, other))
        for one, other in zip(x.arrays, y.arrays, strict=True)
    )
