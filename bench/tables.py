"""How the rounding benches print what they have measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table in Markdown: the first column is text, the others are numbers, but for one that is called `way`."""
    print(f"\n{title}\n")
    print("| " + " | ".join(columns) + " |")
    rules = ["---" if number == 0 or name == "way" else "--:" for number, name in enumerate(columns)]
    print("|" + "|".join(rules) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |")


def measured(size: int, kl: float, error: float, base: float) -> list[str]:
    """What is told of a file in every table: MB, KL, and the part of the fine-tune that is kept, `base` being the KL
    of the base alone."""
    return [f"{size / 1e6:.1f}", f"{kl:.5f} ± {error:.5f}", f"{100 * (1 - kl / base):.2f}"]
