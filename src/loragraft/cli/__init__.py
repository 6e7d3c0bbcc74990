"""The command line: parse, call a verb of the library, print.

One file per command; `command.py` gives them all their common options, errors and exit codes.
"""

from __future__ import annotations

import io
import sys
from typing import Annotated, NoReturn

import typer

from loragraft import __version__, interrupts
from loragraft.cli.command import add, reported

app = typer.Typer(
    name="loragraft",
    help="Get a LoRA fine-tune onto a quantized model without losing it.",
    epilog="Each command has its own help with examples: loragraft merge --help",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,  # `reported` is the only place that prints errors
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"loragraft {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    pass


_GRAFT, _MEASURE, _USE, _FILES = "Graft", "Measure", "Use", "Files"

#: Every command: the panel of `loragraft --help` that lists it, and its name, which is its module's too.
COMMANDS: tuple[tuple[str, str], ...] = (
    (_GRAFT, "merge"),
    (_GRAFT, "quantize"),
    (_GRAFT, "convert"),
    (_GRAFT, "export"),
    (_GRAFT, "imatrix"),
    (_MEASURE, "compare"),
    (_MEASURE, "check"),
    (_MEASURE, "perplexity"),
    (_USE, "run"),
    (_USE, "tokenize"),
    (_FILES, "inspect"),
    (_FILES, "split"),
    (_FILES, "join"),
)
for _panel, _name in COMMANDS:
    add(app, _name, _panel)


def main() -> NoReturn:
    """Run the command line of this process and exit: 0, 1 for an error the user can act on, 2 for wrong usage."""
    interrupts.install()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name need not be text
    with reported():
        app(prog_name="loragraft")
    sys.exit(0)
