"""How sure a figure measured on a text is.

The tokens of one window share its text, so their divergences go together, and a standard error that takes them for
independent is too small: on Shakespeare by a factor of 1.2 to 2. Windows are read on their own, so their means are
independent. With few windows, though, the spread of their means is known badly and may come out small by chance. So the
standard error is the larger of the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

from loragraft.arrays import Doubles

SIGNIFICANT = 2.0
"""How many standard errors two figures must be apart to be called different."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """`value` ± `error`, one standard error."""

    value: float
    error: float

    def at_least(self, wanted: float) -> bool:
        """Whether it surely is."""
        return self.value - SIGNIFICANT * self.error >= wanted

    def below(self, wanted: float) -> bool:
        """Whether it surely is."""
        return self.value + SIGNIFICANT * self.error < wanted


def mean(values: Doubles) -> Estimate:
    """The mean of figures of tokens, [windows, tokens]."""
    return Estimate(float(values.mean()), _standard_error(values))


def share_kept(deployment: Doubles, base: Doubles) -> Estimate:
    """1 - mean(deployment) / mean(base), from the divergences [windows, tokens] of the same tokens.

    The error is that of a ratio whose parts go together (the delta method): of the mean of deployment - ratio * base,
    over mean(base). Negative if the deployment is further from the fine-tune than the base is.
    """
    whole = float(base.mean())
    ratio = float(deployment.mean()) / whole
    return Estimate(1 - ratio, _standard_error(deployment - ratio * base) / whole)


def _standard_error(values: Doubles) -> float:
    windows = values.mean(axis=1)
    return max(_of_independent(values), _of_independent(windows) if len(windows) > 1 else 0.0)


def _of_independent(values: Doubles) -> float:
    return float(values.std()) / sqrt(max(values.size - 1, 1))
