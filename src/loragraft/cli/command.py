"""What a command is: a function whose decorators are its parameters, whose docstring is its help, with examples.

    @command("loragraft join model-00001-of-00003.gguf model.gguf")
    @argument("model", metavar="IN.gguf", type=FILE, help="Any file of the split model.")
    def join(model: Path) -> None:
        "Join the files of a split GGUF model into one."

Every command also takes --quiet and --verbose. The functions import what they need when called, so that help is quick.
"""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

from loragraft.cli import console
from loragraft.cli.files import FILE, OUTPUT, PLACE, refuse_inputs

__all__ = ["FILE", "OUTPUT", "PLACE", "argument", "command", "flag", "option"]


class Argument(click.Argument):
    """A positional parameter, with a help text (which click knows from version 8.5 on)."""

    panel = "Arguments"

    def __init__(self, *names: Any, **attributes: Any) -> None:
        self.about: str = attributes.pop("help")
        super().__init__(*names, **attributes)

    def get_help_record(self, ctx: click.Context) -> tuple[str, str]:
        return self.human_readable_name, self.about


class Option(click.Option):
    """An option, the panel of the help that it stands in, and its default in words (`default_text`, else the value)."""

    def __init__(
        self, *names: Any, panel: str = "Options", default_text: object = None, **attributes: Any
    ) -> None:
        super().__init__(*names, **attributes)
        self.panel = panel
        if default_text is None and not self.is_flag:
            default_text = attributes.get("default")
        self.about = self.help or ""
        if self.required:
            self.about += " Required."
        elif default_text is not None:
            self.about += f" Default: {default_text}."

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        record = super().get_help_record(ctx)
        return record and (record[0], self.about)


argument = functools.partial(click.argument, cls=Argument)
option = functools.partial(click.option, cls=Option)
flag = functools.partial(option, is_flag=True)

#: How click says that there is one argument too many.
_EXTRA = re.compile(r"Got unexpected extra argument \((.+)\)", re.DOTALL)
_TEXTS = (".txt", ".md", ".jsonl", ".raw")

_EVERYWHERE = (
    Option(["--quiet", "-q"], is_flag=True, help="Print results and errors only."),
    Option(["--verbose", "-v"], is_flag=True, help="Say more; tracebacks for internal errors."),
)


class Command(click.Command):
    """A command with `examples`, command lines shown under its help."""

    def __init__(self, name: str | None, *, examples: tuple[str, ...], **attributes: Any) -> None:
        super().__init__(name, **attributes)
        self.params.extend(_EVERYWHERE)
        self.examples = examples

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if any(parameter.required for parameter in self.params):
            help_if_bare(ctx, args)
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            if meant := self._meant(error.message):
                raise click.UsageError(error.message + meant, ctx) from None
            raise

    def _meant(self, message: str) -> str:
        """The option that an argument too many was probably meant for: a file or folder, or a text."""
        extra = _EXTRA.fullmatch(message)
        if extra is None:
            return ""
        path = Path(extra[1])
        likely = ("--text", "--file") if path.suffix in _TEXTS else ("--lora",)
        names = {name for parameter in self.params for name in parameter.opts}
        for name in likely if _is_there(path) else ("--prompt",):
            if name in names:
                return f"; did you mean {name} {shlex.quote(extra[1])}?"
        return ""

    def invoke(self, ctx: click.Context) -> None:
        console.configure(quiet=ctx.params.pop("quiet"), verbose=ctx.params.pop("verbose"))
        console.silence_libraries()
        refuse_inputs(self.params, ctx.params)
        super().invoke(ctx)

    def format_arguments(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Nothing: their panel is one of those below."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        panels: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            if record := parameter.get_help_record(ctx):
                panels.setdefault(getattr(parameter, "panel", "Options"), []).append(record)
        for panel, records in panels.items():
            section(formatter, panel, records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section(bold("Examples")):
            for line in self.examples:
                formatter.write(f"  {line}\n")


def command(*examples: str, **facts: str) -> Callable[[Callable[..., None]], Command]:
    """The function as a command of its own name; its docstring, with `facts` filled in where it says {name}, is the
    help."""

    def make(function: Callable[..., None]) -> Command:
        if facts:
            function.__doc__ = str(function.__doc__).format(**facts)
        return click.command(function.__name__, cls=Command, examples=examples)(function)

    return make


def section(formatter: click.HelpFormatter, heading: str, records: Iterable[tuple[str, str]]) -> None:
    with formatter.section(bold(heading)):
        formatter.write_dl(list(records))


def bold(text: str) -> str:
    return click.style(text, bold=True)  # click takes it out again where there are no colours


def help_if_bare(ctx: click.Context, args: list[str]) -> None:
    """Whoever gives no argument at all wants to know which there are."""
    if not args and not ctx.resilient_parsing:
        click.echo(ctx.get_help(), err=True, color=ctx.color)
        ctx.exit(2)


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False
