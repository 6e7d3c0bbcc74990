"""Numbers as people read them."""

from __future__ import annotations

import re
from collections.abc import Iterable


def bytes_text(size: int) -> str:
    """`999 B`, `1.5 kB`, `12.3 MB`, `4.1 GB`: decimal units, as disks are sold and llama.cpp counts."""
    number = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if number < 999.95:
            return f"{size} B" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


def count_text(count: int) -> str:
    """`1,234,567`."""
    return f"{count:,}"


def digits_text(number: float, digits: int) -> str:
    """The number rounded to so many digits: `854.9`, `420`, `0.00832`, `inf`."""
    return f"{float(f'{number:.{digits}g}'):.12g}"


def ranges_text(numbers: Iterable[int]) -> str:
    """`0-3,5` for 0, 1, 2, 3, 5."""
    ranges: list[list[int]] = []
    for number in sorted(numbers):
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ",".join(f"{first}" if first == last else f"{first}-{last}" for first, last in ranges)


def share(text: str) -> float:
    """What `99%`, `99` or `0.99` means: a number between 0 and 1. Raises `ValueError`."""
    number = text.removesuffix("%").strip()
    try:
        value = float(number)
    except ValueError:
        value = -1.0
    if text.endswith("%") or value >= 1:
        value /= 100
    if not 0 < value < 1:
        raise ValueError(f"{text!r} is not a share, expected a percentage between 0% and 100%")
    return value


_UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


def byte_count(text: str) -> int:
    """The bytes of `3.2MB`, `4 GiB` or `1200000`. Raises `ValueError`."""
    units = {unit.lower(): size for unit, size in _UNITS.items()}
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text)
    if found is None or (found[2] or "B").lower() not in units or not 0 < float(found[1]) < 1e30:
        raise ValueError(f"{text!r} is not a size, expected a number with one of {', '.join(_UNITS)}")
    return int(float(found[1]) * units[(found[2] or "B").lower()])


def names_text(names: Iterable[str], most: int = 3) -> str:
    """The first `most` of `names`, and "..." if there are more."""
    listed = list(names)
    return ", ".join(listed[:most]) + (", ..." if len(listed) > most else "")


def plural(count: int, noun: str) -> str:
    """`1 tensor`, `2 tensors`."""
    return f"{count_text(count)} {noun}{'' if count == 1 else 's'}"
