"""Plots as inline SVG, in the colours of the page. A mark tells its numbers when the pointer rests on it.

Each is drawn twice, for a desk and for a phone; the page's style shows the one that fits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from loragraft.verbs.report.page import text

#: The legend stands above the plot, where no mark can be.
_LEFT, _RIGHT, _LEGEND, _TOP, _BOTTOM = 74, 18, 6, 44, 44
#: In units of which a letter is about 7 wide.
_DESK, _PHONE = 720, 370


@dataclass(frozen=True, slots=True)
class Mark:
    """A point: `y` with an `error` on both sides."""

    x: float
    y: float
    label: str
    title: str
    error: float = 0.0


@dataclass(frozen=True, slots=True)
class Series:
    name: str
    marks: Sequence[Mark]
    joined: bool = True


def scatter(
    series: Sequence[Series],
    *,
    x_title: str,
    y_title: str,
    y_text: dict[float, str] | None = None,
    falling: bool = False,
    limit: tuple[float, str] | None = None,
    height: int = 380,
) -> str:
    """Points on a logarithmic y axis, whose values must be above 0. `falling`: small values are drawn at the top;
    `y_text`: what to write at which value; `limit`: a dashed line with a text."""

    def drawn(width: int) -> tuple[int, list[str]]:
        return height, _scatter(
            width,
            series,
            x_title=x_title,
            y_title=y_title,
            y_text=y_text,
            falling=falling,
            limit=limit,
            height=height,
        )

    return _figure(drawn, f"{y_title} against {x_title}")


def _scatter(
    width: int,
    series: Sequence[Series],
    *,
    x_title: str,
    y_title: str,
    y_text: dict[float, str] | None,
    falling: bool,
    limit: tuple[float, str] | None,
    height: int,
) -> list[str]:
    marks = [mark for each in series for mark in each.marks]
    ys = [mark.y for mark in marks] + ([limit[0]] if limit else [])
    low, high = math.log10(min(ys)) - 0.15, math.log10(max(ys)) + 0.15
    xs = [mark.x for mark in marks]
    left, right = min(xs), max(xs)
    margin = (right - left or abs(left) or 1.0) * 0.08
    left, right = left - margin, right + margin

    def at_x(value: float) -> float:
        return _LEFT + (value - left) / (right - left) * (width - _LEFT - _RIGHT)

    def at_y(value: float) -> float:
        share = (math.log10(max(value, 10 ** (low - 1))) - low) / (high - low)
        share = min(max(share if falling else 1 - share, 0.0), 1.0)
        return _TOP + share * (height - _TOP - _BOTTOM)

    parts = []
    for value, label in (y_text or _decades(low, high)).items():
        if low <= math.log10(value) <= high:
            y = at_y(value)
            parts.append(f'<line class="grid" x1="{_LEFT}" x2="{width - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(
                f'<text class="dim" x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{text(label)}</text>'
            )
    for value in _ticks(left, right, width // 110):
        x = at_x(value)
        parts.append(
            f'<text class="dim" x="{x:.1f}" y="{height - _BOTTOM + 18}" text-anchor="middle">{value:g}</text>'
        )
    parts.append(
        f'<line class="axis" x1="{_LEFT}" x2="{width - _RIGHT}" y1="{height - _BOTTOM}" y2="{height - _BOTTOM}"/>'
    )
    if limit:
        y = at_y(limit[0])
        parts.append(f'<line class="limit" x1="{_LEFT}" x2="{width - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(
            f'<text class="dim" x="{width - _RIGHT}" y="{y - 5:.1f}" text-anchor="end">{text(limit[1])}</text>'
        )
    for each, colour in zip(series, "abc", strict=False):
        points = sorted(each.marks, key=lambda mark: mark.x)
        if each.joined and len(points) > 1:
            path = " ".join(f"{at_x(mark.x):.1f},{at_y(mark.y):.1f}" for mark in points)
            parts.append(f'<polyline class="{colour} line" points="{path}"/>')
        for number, mark in enumerate(points):
            x, y = at_x(mark.x), at_y(mark.y)
            if mark.error:
                ends = at_y(mark.y + mark.error), at_y(mark.y - mark.error)
                parts.append(
                    f'<line class="{colour}" x1="{x:.1f}" x2="{x:.1f}" y1="{ends[0]:.1f}" y2="{ends[1]:.1f}"/>'
                )
            shape = (
                f'<rect x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8"'
                if colour == "b"
                else f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5"'
            )
            parts.append(f'{shape} class="{colour}"><title>{text(mark.title)}</title>{_end(shape)}')
            if mark.label:
                # By turns above and below the line, so that neighbours' do not meet.
                before, long = number % 2 == 0, 7 * len(mark.label) + 9
                if (x - long < _LEFT) if before else (x + long > width):
                    before = not before
                place = (x - 8, y - 8, "end") if before else (x + 9, y + 17, "start")
                parts.append(
                    f'<text x="{place[0]:.1f}" y="{place[1]:.1f}" text-anchor="{place[2]}">{text(mark.label)}</text>'
                )
    legend_x = _LEFT + 8
    for each, colour in zip(series, "abc", strict=False):
        parts.append(
            f'<rect x="{legend_x - 4}" y="{_LEGEND + 2}" width="8" height="8" class="{colour}"/>'
            if colour == "b"
            else f'<circle cx="{legend_x}" cy="{_LEGEND + 6}" r="4.5" class="{colour}"/>'
        )
        parts.append(f'<text x="{legend_x + 10}" y="{_LEGEND + 10}">{text(each.name)}</text>')
        legend_x += 40 + 9 * len(each.name)
    parts.append(
        f'<text class="dim" x="{(_LEFT + width - _RIGHT) // 2}" y="{height - 6}" text-anchor="middle">'
        f"{text(x_title)}</text>"
    )
    parts.append(
        f'<text class="dim aside" transform="translate(14 {height // 2}) rotate(-90)" text-anchor="middle">'
        f"{text(y_title)}</text>"
    )
    return parts


def bars(rows: Sequence[tuple[str, float, str]], *, name: str, logarithmic: bool = False) -> str:
    """One bar for each (label, value, text); on a logarithmic axis its length counts decades above a thousandth of the
    largest."""
    return _figure(lambda width: _bars(width, rows, logarithmic=logarithmic), name)


def _bars(width: int, rows: Sequence[tuple[str, float, str]], *, logarithmic: bool) -> tuple[int, list[str]]:
    top = max((value for _, value, _ in rows if math.isfinite(value)), default=0.0)
    label_width = _label_width((label for label, _, _ in rows), width)
    room = width - label_width - 90
    parts = []
    for number, (label, value, shown) in enumerate(rows):
        y = 8 + 26 * number
        share = min(value / top, 1.0) if top > 0 and not math.isnan(value) else 0.0
        if logarithmic:
            share = max(1 + math.log10(share) / 3, 0.0) if share > 0 else 0.0
        parts.append(_row_label(label, label_width, y + 14))
        parts.append(
            f'<rect class="a" x="{label_width}" y="{y}" width="{share * room:.1f}" height="18" rx="2">'
            f"<title>{text(label)}: {text(shown)}</title></rect>"
        )
        parts.append(
            f'<text class="dim" x="{label_width + share * room + 6:.1f}" y="{y + 14}">{text(shown)}</text>'
        )
    return 16 + 26 * len(rows), parts


def grid(
    rows: Sequence[str], columns: Sequence[str], cells: dict[tuple[str, str], tuple[float, str]], *, name: str
) -> str:
    """A field of cells, each with a strength from 0 to 1 and its text: tensors by layer, for one."""
    return _figure(lambda width: _grid(width, rows, columns, cells), name)


def _grid(
    whole: int,
    rows: Sequence[str],
    columns: Sequence[str],
    cells: dict[tuple[str, str], tuple[float, str]],
) -> tuple[int, list[str]]:
    label_width = _label_width(rows, whole)
    width = (whole - label_width - 8) / max(len(columns), 1)
    parts = []
    for number, row in enumerate(rows):
        y = 4 + 22 * number
        parts.append(_row_label(row, label_width, y + 15))
        for place, column in enumerate(columns):
            if (cell := cells.get((row, column))) is None:
                continue
            parts.append(
                f'<rect x="{label_width + place * width:.2f}" y="{y}" width="{max(width - 1, 1):.2f}" height="20" '
                f'fill="var(--a)" fill-opacity="{0.12 + 0.88 * min(max(cell[0], 0), 1):.2f}">'
                f"<title>{text(cell[1])}</title></rect>"
            )
    bottom = 4 + 22 * len(rows)
    step = max(1, math.ceil(40 * len(columns) / whole))
    for place in range(0, len(columns), step):
        parts.append(
            f'<text class="dim" x="{label_width + (place + 0.5) * width:.1f}" y="{bottom + 14}" text-anchor="middle">'
            f"{text(columns[place])}</text>"
        )
    return bottom + 22, parts


def _label_width(labels: Iterable[str], width: int) -> int:
    return min(max((len(label) for label in labels), default=0) * 7 + 14, width * 2 // 5)


def _row_label(label: str, width: int, y: int) -> str:
    """Its end, if there is not room for all of it: that is where names differ."""
    letters = max((width - 14) // 7, 2)
    shown = label if len(label) <= letters else "…" + label[1 - letters :]
    return f'<text x="{width - 8}" y="{y}" text-anchor="end">{text(shown)}</text>'


def _figure(drawn: Callable[[int], tuple[int, list[str]]], name: str) -> str:
    """What `drawn` makes of a width: a height, and what is in it."""
    plots = []
    for kind, width in (("desk", _DESK), ("phone", _PHONE)):
        height, parts = drawn(width)
        head = f'<svg class="{kind}" viewBox="0 0 {width} {height}" role="img" aria-label="{text(name)}">'
        plots.append(head + "".join(parts) + "</svg>")
    return f"<figure>{''.join(plots)}</figure>"


def _end(shape: str) -> str:
    return "</rect>" if shape.startswith("<rect") else "</circle>"


def _decades(low: float, high: float) -> dict[float, str]:
    first, last = math.floor(low), math.ceil(high)
    steps = (1, 2, 5) if last - first <= 3 else (1,)
    values = [step * 10.0**decade for decade in range(first, last + 1) for step in steps]
    return {value: f"{value:.3g}" for value in values}


def _ticks(left: float, right: float, count: int) -> list[float]:
    """Round numbers between, some `count` of them."""
    rough = (right - left) / count
    decade = 10 ** math.floor(math.log10(rough))
    step = next(decade * factor for factor in (1, 2, 5, 10) if decade * factor >= rough)
    first = math.ceil(left / step)
    return [round(number * step, 10) for number in range(first, math.floor(right / step) + 1)]
