"""Numbers as people read them."""

from __future__ import annotations


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


def plural(count: int, noun: str) -> str:
    """`1 tensor`, `2 tensors`."""
    return f"{count_text(count)} {noun}{'' if count == 1 else 's'}"
