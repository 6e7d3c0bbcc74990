"""Writes docs/cli.md from what `loragraft COMMAND --help` is made of; tests/cli/test_docs.py fails when it is stale."""

from __future__ import annotations

import re
from pathlib import Path

import click

from loragraft.cli import PANELS, app
from loragraft.cli.command import Argument, Command, Option

INTRODUCTION = """# Command line

Written by `make docs` from the commands themselves; `loragraft COMMAND --help` shows the same.

Results go to stdout, all else to stderr. Exit codes: 0 done; 1 an error in the input or on the machine, one line on
stderr that names the file, what was found and what was expected; 2 wrong usage; 130 interrupted. An output file appears
whole or not at all. Colours and progress bars are off when the output is not a terminal, or with NO_COLOR.
`eval "$(loragraft completion bash)"` (or zsh, in ~/.bashrc or ~/.zshrc) teaches your shell the commands and options.

Every command also takes `--quiet` (`-q`: results and errors only), `--verbose` (`-v`: say more) and `--help` (`-h`).
"""
COMMON = {"quiet", "verbose", "help"}


def page() -> str:
    overview = [
        f"- {panel}: " + ", ".join(f"[{name}](#{name})" for name in commands)
        for panel, commands in PANELS.items()
    ]
    names = [name for commands in PANELS.values() for name in commands]
    return "\n".join([INTRODUCTION, *overview, "", *map(section, names)])


def section(name: str) -> str:
    command = app.get_command(click.Context(app), name)
    assert isinstance(command, Command)
    arguments = [parameter for parameter in command.params if isinstance(parameter, Argument)]
    options = [
        parameter
        for parameter in command.params
        if isinstance(parameter, Option) and parameter.name not in COMMON
    ]
    usage = " ".join(
        ["loragraft", name, "[OPTIONS]", *(argument.human_readable_name for argument in arguments)]
    )
    examples = "\n".join(command.examples)
    paragraphs = [" ".join(text.split()) for text in (command.help or "").split("\n\n")]
    lines = [f"## {name}\n", f"```\n{usage}\n```\n", markdown("\n\n".join(paragraphs)), ""]
    lines += [f"- `{argument.human_readable_name}`: {markdown(argument.about)}" for argument in arguments]
    lines += [f"- {spelling(option)}: {markdown(option.about)}" for option in options]
    return "\n".join([*lines, "", f"```\n{examples}\n```\n"])


def spelling(option: Option) -> str:
    names = sorted(option.opts, key=len, reverse=True) + option.secondary_opts
    return ", ".join(f"`{name}{value(option)}`" for name in names)


def value(option: Option) -> str:
    if option.is_flag:
        return ""
    return " " + (
        "|".join(option.type.choices) if isinstance(option.type, click.Choice) else option.metavar or ""
    )


def markdown(text: str) -> str:
    return re.sub(r"<[^<>\s]+>", lambda tag: f"`{tag[0]}`", text)


if __name__ == "__main__":
    (Path(__file__).parent / "cli.md").write_text(page())
