"""What `compare --json` printed, read again for a model card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from loragraft.errors import FormatError
from loragraft.formats.jsonfile import load_json

_MOST_ROWS = 200
_MOST_LABEL = 200


@dataclass(frozen=True, slots=True)
class Row:
    """One deployment: `kl` and `same_top` beside the merged model at full precision, None for that; `kept` the share of
    the fine-tune with its error, None where none was measured."""

    label: str
    size: int
    perplexity: float
    kl: float | None
    same_top: float | None
    kept: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Measured:
    """The rows of a comparison; `tokens` predictions in `windows` windows of `context` tokens."""

    rows: tuple[Row, ...]
    tokens: int
    windows: int
    context: int


def read_comparison(path: Path) -> Measured:
    """Raises FormatError for a file that `loragraft compare --json` did not write."""
    found = load_json(path, FormatError)
    at = _At(path)
    types = at.part(found, "types", list)
    if not 1 <= len(types) <= _MOST_ROWS:
        raise at.wrong("types", f"{len(types)} of them", f"1 to {_MOST_ROWS}")
    ways = [at.part(one, way, dict) for one in types for way in ("merged", "runtime")]
    every = [*ways, at.part(found, "full", dict), at.part(found, "base", dict)]
    perplexity = at.part(every[0], "perplexity", dict)
    return Measured(
        tuple(_row(at, one) for one in every),
        int(at.number(perplexity, "tokens")),
        int(at.number(perplexity, "windows")),
        int(at.number(found, "context")),
    )


def _row(at: _At, one: Mapping[str, Any]) -> Row:
    divergence, kept = one.get("divergence"), one.get("kept")
    return Row(
        at.part(one, "label", str)[:_MOST_LABEL],
        int(at.number(one, "size")),
        at.number(at.part(one, "perplexity", dict), "value"),
        None if divergence is None else at.number(divergence, "mean"),
        None if divergence is None else at.number(divergence, "same_top"),
        None if kept is None else (at.number(kept, "value"), at.number(kept, "error")),
    )


@dataclass(frozen=True)
class _At:
    path: Path

    def wrong(self, name: str, found: object, expected: str) -> FormatError:
        return FormatError(
            self.path,
            f"is not a comparison: {name}",
            found=found,
            expected=expected,
            hint="write it by: loragraft compare ... --json > FILE",
        )

    def part(self, of: Any, name: str, kind: type) -> Any:
        part = of.get(name) if isinstance(of, dict) else None
        if not isinstance(part, kind):
            raise self.wrong(name, type(part).__name__, kind.__name__)
        return part

    def number(self, of: Any, name: str) -> float:
        value = of.get(name) if isinstance(of, dict) else None
        if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
            raise self.wrong(name, repr(value)[:40], "a number")
        return value
