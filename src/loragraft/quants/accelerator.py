"""What takes the heavy parts of calibrated rounding off the processor, while it is at hand: second moments, factors,
and the loops of rounding with feedback. It computes what the processor does, but in another order of sums: other bytes
may come of it, as near to the weights' outputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

from loragraft.arrays import Floats
from loragraft.quants.arranged import Arranged, Moments, Schedule
from loragraft.quants.grids import Grid


class Accelerator(Protocol):
    """Calls come from several threads."""

    def second_moments(self, total: Floats, rows: Sequence[tuple[Floats, Floats | None]]) -> None:
        """Add the sum of c x x^T to `total` float32 [n, n], symmetric, over all x of `rows`: float32 [count, n], and
        how much each counts [count], if not 1."""

    def factor(self, panels: Sequence[Floats]) -> Floats:
        """As `quants.feedback._factor_panels`."""

    def feedback(self, rows: Arranged, grid: Grid, moments: Moments, plan: Schedule) -> None:
        """The loops of `quants.feedback`: changes levels, scales and offsets of `rows`, and sets their losses."""


_at_hand: ContextVar[Accelerator | None] = ContextVar("accelerator", default=None)


def at_hand() -> Accelerator | None:
    """What to compute with; None: the processor."""
    return _at_hand.get()


@contextmanager
def using(accelerator: Accelerator | None) -> Iterator[None]:
    """Have it at hand within, for the caller and the threads that it shares work out to (`system.threads`); others in
    the process, who may round at the same time, have their own."""
    before = _at_hand.set(accelerator)
    try:
        yield
    finally:
        _at_hand.reset(before)
