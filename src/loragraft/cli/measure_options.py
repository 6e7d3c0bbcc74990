"""The options of every command that measures on a text."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loragraft.cli.command import FILE, option
from loragraft.cli.options import ACTIVATIONS, BACKEND, DEVICE, THREADS, read_text
from loragraft.errors import TextError

if TYPE_CHECKING:
    from loragraft.inference.measurement import Measurement

_how = functools.partial(option, panel="Measuring")
_MAX_CHARS = _how(
    "--max-chars",
    type=click.IntRange(min=1),
    metavar="N",
    default_text="all",
    help="Use the text's first N characters.",
)


@dataclass(frozen=True)
class Measured:
    """The text in the file `path`, and `settings` of `loragraft.Measurement`."""

    path: Path
    max_chars: int | None
    settings: dict[str, Any]

    @property
    def context(self) -> int:
        return int(self.settings["context"])

    @cached_property
    def measurement(self) -> Measurement:
        """Reads the file."""
        from loragraft.inference.measurement import Measurement

        return Measurement(read_text(self.path, self.max_chars), **self.settings)

    @contextmanager
    def named(self) -> Iterator[None]:
        """What a verb says about the text that was given to it, it says about the file."""
        try:
            yield
        except TextError as error:
            raise error.about(self.path) from None


def measure_options(
    *,
    context: int,
    windows: int | None = None,
    runs: bool = False,
    activations: bool = False,
    threads: bool = True,
    text: str | None = None,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command these options, as the argument `measured`; with `runs` those too that say how models are run,
    with `activations` only that of these.

    `text`: the help of a --text that may be left out, and then `measured` is None.
    """
    options = [
        _how(
            "--text",
            "-f",
            required=text is None,
            type=FILE,
            metavar="FILE",
            help=text or "The text to measure on, UTF-8.",
        ),
        _how(
            "--context",
            "-c",
            type=click.IntRange(min=4),
            metavar="N",
            default=context,
            help="Tokens per window.",
        ),
        _how(
            "--windows",
            type=click.IntRange(min=1),
            default=windows,
            metavar="N",
            default_text=None if windows else "all",
            help="Measure on the first N windows.",
        ),
        _MAX_CHARS,
        *([BACKEND, DEVICE] if runs else []),
        *([ACTIVATIONS] if runs or activations else []),
        *([THREADS] if threads else []),
    ]
    names = [
        "context",
        "windows",
        *(["backend", "device"] if runs else []),
        *(["activations"] if runs or activations else []),
        *(["threads"] if threads else []),
    ]

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def wrapped(*, text: Path | None, max_chars: int | None, **values: Any) -> None:
            settings = {name: values.pop(name) for name in names}
            measured = None if text is None else Measured(text, max_chars, settings)
            function(measured=measured, **values)

        decorated: Callable[..., None] = wrapped
        for add in reversed(options):
            decorated = add(decorated)
        return decorated

    return decorate
