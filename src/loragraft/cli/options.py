"""Options that several commands take, declared once."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from loragraft.errors import LoragraftError


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


Backend = Annotated[
    Literal["native", "reference"],
    typer.Option("--backend", help="native runs quantized weights as they are; reference is NumPy."),
]
Text = Annotated[
    Path, typer.Option("--text", "-f", help="The text to measure on, UTF-8.", show_default=False)
]
Context = Annotated[int, typer.Option("--context", "-c", min=4, metavar="N", help="Tokens per window.")]
Windows = Annotated[
    int | None,
    typer.Option("--windows", min=1, metavar="N", help="Stop after N windows.", show_default="all"),
]
MaxChars = Annotated[
    int | None,
    typer.Option(
        "--max-chars", min=1, metavar="N", help="Use the text's first N characters.", show_default="all"
    ),
]


def files_of(path: Path) -> list[Path]:
    """The files that reading `path` reads: those in a folder, or itself."""
    return sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]


def prompt_of(prompt: str | None, file: Path | None) -> str:
    """What --prompt or --file say; one of them must be given."""
    if (prompt is None) == (file is None):
        raise typer.BadParameter("give either --prompt or --file", param_hint="'--prompt'")
    if prompt is not None:
        return prompt
    assert file is not None
    if str(file) == "-":
        return decoded(sys.stdin.buffer.read(), "stdin")
    return read_text(file)


def read_text(path: Path, max_chars: int | None = None) -> str:
    """The text in a file, whatever its line ends; the first `max_chars` characters of it."""
    return decoded(path.read_bytes(), str(path))[:max_chars]


def decoded(data: bytes, subject: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise LoragraftError(
            subject, "not UTF-8 text", found=f"byte {data[error.start]:#04x} at {error.start}"
        ) from None


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
            number = float(scale)
        except ValueError:
            number = math.nan
        if math.isfinite(number):
            pairs.append((Path(path), number))
        else:
            raise typer.BadParameter(
                f"{scale!r} is not a number; expected ADAPTER or ADAPTER=SCALE", param_hint="'--lora'"
            ) from None
    return pairs
