"""Options that several commands take, declared once, and what their values are read with."""

from __future__ import annotations

import math
import os
import pkgutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from loragraft.cli.command import FILE, OUTPUT, PLACE, argument, flag, option
from loragraft.errors import LoragraftError
from loragraft.formats.textfile import MAX_TEXT, decoded, read_file
from loragraft.system.remote.paths import as_path, is_url
from loragraft.system.threads import MAX_THREADS

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from loragraft.progress import Progress
    from loragraft.streaming.report import WriteReport
    from loragraft.verbs.report import Reportable


class Parsed(click.ParamType):  # type: ignore[type-arg]
    """What a function of the library makes of the text; the function is named, to be imported when there is a value."""

    def __init__(self, function: str) -> None:
        self.function = function
        self.name = function.rpartition(":")[2]

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        parse: Callable[[str], Any] = pkgutil.resolve_name(self.function)
        try:
            return parse(value)
        except (LoragraftError, ValueError) as problem:
            self.fail(str(problem), param, ctx)


class AdapterParam(click.ParamType):  # type: ignore[type-arg]
    """ADAPTER[=SCALE] as (path, scale). A path that exists is taken as it is, so a name that contains `=` works."""

    name = "adapter"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path, sign, scale = value.rpartition("=")
        if not sign or (not is_url(value) and Path(value).exists()):
            return as_path(value), 1.0
        try:
            number = float(scale)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            self.fail(f"{scale!r} is not a number, expected ADAPTER or ADAPTER=SCALE", param, ctx)
        return as_path(path), number

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        return [CompletionItem(incomplete, type="file")]


TARGET = Parsed("loragraft.quants.filetypes:file_type")

MODEL = argument(
    "model", metavar="MODEL", type=FILE, help="A GGUF file or a Hugging Face folder, or the URL of one."
)
LORA = option(
    "--lora",
    multiple=True,
    type=AdapterParam(),
    metavar="ADAPTER[=SCALE]",
    help="A PEFT or mlx-lm folder or a GGUF adapter, or its URL, with its strength (1 if left out). May be given "
    "several times.",
)
PROMPT = option("--prompt", "-p", metavar="TEXT", help="The text to read.")
PROMPT_FILE = option(
    "--file", "-f", type=FILE, metavar="FILE", help="Read the text from a file (- for stdin)."
)
BACKEND = option(
    "--backend",
    type=click.Choice(["native", "reference"]),
    default="native",
    help="native runs quantized weights as they are; reference is NumPy.",
)
DEVICE = option(
    "--device",
    default="cpu",
    metavar="NAME",
    help="Where to run: cpu, or a GPU: webgpu, cuda or xpu, with a number as in cuda:1 (see loragraft devices).",
)
ACTIVATIONS = option(
    "--activations",
    type=click.Choice(["auto", "f32", "q8", "nvfp4"]),
    default_text="the backend's",
    help="What activations are rounded to before a product with a quantized weight.",
)
THREAD_COUNT = click.IntRange(1, MAX_THREADS)
THREADS = option(
    "--threads",
    "-t",
    type=THREAD_COUNT,
    metavar="N",
    default_text="all CPUs",
    help="Threads to use.",
)
WORK_DIR = option(
    "--work-dir",
    type=PLACE,
    metavar="DIR",
    default_text="the system's temporary folder",
    help="Where to make temporary files.",
)
HTML = option(
    "--html",
    type=OUTPUT,
    metavar="FILE",
    help="Write the result as one HTML file too: no network, light and dark, readable on a phone.",
)
WORKERS = option(
    "--workers",
    metavar="N|ray|ray://HOST:PORT",
    help="Spread the work over N processes, or the nodes of a Ray cluster, each with --threads threads.",
)
PUSH = option(
    "--push",
    metavar="hf://ORG/NAME",
    panel="Output",
    help="Upload the result to the hub afterwards, with a model card that says what went into it.",
)
COMPARISON = option(
    "--comparison",
    type=FILE,
    metavar="FILE",
    panel="Output",
    help="With --push: what `compare --json` printed, to show in the model card.",
)
JSON = flag("--json", "as_json", help="Print the result as JSON.")


def plot_option(what: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return option("--plot", type=OUTPUT, metavar="FILE", help=f"Draw {what} (PNG or SVG; needs matplotlib).")


def check_html(html: Path | None) -> None:
    """Refuses a report that could not be written, before anything is measured."""
    if html is not None:
        from loragraft.verbs.report import check_report

        check_report(html)


def reported(result: Reportable, html: Path | None) -> None:
    """Does what --html says."""
    if html is None:
        return
    import loragraft as lg
    from loragraft.cli import console

    lg.report(result, html)
    console.info(f"wrote {html}")


def pushed(
    report: WriteReport, push: str | None, base: Path, progress: Progress, comparison: Path | None = None
) -> None:
    """Does what --push and --comparison say."""
    if push is None:
        return
    from loragraft.cli import console
    from loragraft.verbs.push import push as upload

    console.info(f"uploaded: {upload(report, push, base=base, comparison=comparison, progress=progress)}")


def check_push(push: str | None, *, dry_run: bool, comparison: Path | None = None) -> None:
    """Refuses what cannot be, before anything is made."""
    if push is None:
        if comparison is not None:
            raise click.UsageError("--comparison is for the model card of --push")
        return
    if comparison is not None:
        from loragraft.verbs.comparison_file import read_comparison

        read_comparison(comparison)
    if dry_run:
        raise click.UsageError("a dry run writes nothing to --push")
    from loragraft.verbs.push import check_target

    check_target(push)


def prompt_of(prompt: str | None, file: Path | None) -> str:
    """What --prompt or --file say; one of them must be given."""
    if (prompt is None) == (file is None):
        raise click.UsageError("give either --prompt or --file")
    if prompt is not None:
        return as_text(prompt, "--prompt")
    assert file is not None
    if str(file) == "-":
        return decoded(_read_stdin(), "stdin")
    return read_text(file)


def as_text(argument: str, name: str) -> str:
    """An argument of the command line as the text that its bytes are in UTF-8, whatever the locale says."""
    try:
        data = os.fsencode(argument)
    except UnicodeEncodeError:
        return argument
    return decoded(data, name) if not argument.isascii() else argument


def _read_stdin() -> bytes:
    if sys.stdin is None:
        raise LoragraftError("stdin", "is closed")
    data: bytes = sys.stdin.buffer.read(MAX_TEXT + 1)
    if len(data) > MAX_TEXT:
        raise LoragraftError("stdin", "the text is too large", expected=f"at most {MAX_TEXT} bytes")
    return data


def read_text(path: Path, max_chars: int | None = None) -> str:
    """The text in a regular file, whatever its line ends; the first `max_chars` characters of it."""
    return decoded(read_file(path, MAX_TEXT), path)[:max_chars]
