"""What a calibration is given, and what it tells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from loragraft.arrays import Ids
from loragraft.quants import feedback
from loragraft.streaming.held_out import HeldOutLoss
from loragraft.units import plural


@dataclass(frozen=True)
class Calibration:
    """The text to round on: `windows` int32 [n, tokens], each read on its own. `gradients`: whether a token counts by
    the gradient at a layer's outputs, and outputs by theirs (`streaming.output_gradients`); `plain`: the part of the
    second moments in which all tokens count alike. `folder`: where files without a name may be."""

    windows: Ids
    damping: float = feedback.DAMPING
    gradients: bool = True
    plain: float = 0.1
    output_damping: float = feedback.OUTPUT_DAMPING
    every: int = 2
    """Gradients are those of every so manyth window."""
    held_out: Mapping[str, Ids] = field(default_factory=dict)
    """Windows of other text, or of other parts of this one, to judge by; of the same length."""
    folder: Path | None = None

    @property
    def judged(self) -> dict[str, Ids]:
        """The texts of `held_out` that have windows."""
        return {label: windows for label, windows in self.held_out.items() if len(windows)}


@dataclass(frozen=True, slots=True)
class MatrixCost:
    """What rounding a matrix costs its outputs, in squares: to nearest, and as it was done. On windows held out, or, if
    there are none, on the text."""

    name: str
    nearest: float
    cost: float


@dataclass
class CalibrationReport:
    """`costs`: of every matrix that was rounded with feedback; `nearest`: names of those that were not, and why."""

    costs: list[MatrixCost] = field(default_factory=list)
    nearest: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    held_out: list[HeldOutLoss] = field(default_factory=list)

    def notes(self) -> list[str]:
        """What the user should know."""
        reasons: dict[str, list[str]] = {}
        for name, reason in self.nearest.items():
            reasons.setdefault(reason, []).append(name)
        worse = [
            f"on {loss.label} this is worse than rounding to nearest: calibrate on more text, or on text like it too"
            for loss in self.held_out
            if loss.kl > loss.nearest
        ]
        return [*self.remarks, *map(str, self.held_out), *worse] + [
            f"{plural(len(names), 'tensor')} {'is' if len(names) == 1 else 'are'} rounded to nearest: {reason} "
            f"({', '.join(names[:3])}"
            f"{', ...' if len(names) > 3 else ''})"
            for reason, names in reasons.items()
        ]
