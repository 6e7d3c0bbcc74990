"""Options that several commands take, declared once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer


def cpu_count() -> int:
    """The CPUs this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


Lora = Annotated[
    list[str] | None,
    typer.Option(
        "--lora",
        metavar="ADAPTER[=SCALE]",
        help="A PEFT folder or GGUF adapter, with its strength (1 if left out). May be given several times.",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", "-t", min=1, metavar="N", help="Threads to use.", show_default="all CPUs"),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def parse_lora(values: list[str] | None) -> list[tuple[Path, float]]:
    """`ADAPTER[=SCALE]` values as (path, scale).

    A path that exists is taken as it is, so a name that contains `=` works.
    """
    pairs = []
    for value in values or []:
        path, sign, scale = value.rpartition("=")
        if not sign or Path(value).exists():
            pairs.append((Path(value), 1.0))
            continue
        try:
            pairs.append((Path(path), float(scale)))
        except ValueError:
            raise typer.BadParameter(
                f"{scale!r} is not a number; expected ADAPTER or ADAPTER=SCALE", param_hint="'--lora'"
            ) from None
    return pairs
