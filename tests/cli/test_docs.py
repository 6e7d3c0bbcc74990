"""docs/cli.md is what --help prints, and examples are real commands with real options."""

from __future__ import annotations

import re
import runpy
import shlex

import click
import pytest

from loragraft.cli import PANELS, app
from loragraft.cli.command import Command
from paths import ROOT


def test_the_page_is_current() -> None:
    page = runpy.run_path(str(ROOT / "docs" / "make_cli.py"))["page"]()
    assert (ROOT / "docs" / "cli.md").read_text() == page, "run `make docs`"


def command_named(name: str) -> Command:
    command = app.get_command(click.Context(app), name)
    assert isinstance(command, Command)
    return command


COMMANDS = [
    (name, summary, command_named(name)) for panel in PANELS.values() for name, summary in panel.items()
]


@pytest.mark.parametrize(("name", "summary", "command"), COMMANDS)
def test_the_overview_says_what_the_command_says(name: str, summary: str, command: Command) -> None:
    assert command.name == name
    assert " ".join((command.help or "").split("\n\n")[0].split()) == summary


@pytest.mark.parametrize("line", [line for _, _, command in COMMANDS for line in command.examples])
def test_examples_parse(line: str) -> None:
    ours = next(part for part in re.split(r" [|>#] |\$\(|\)", line) if "loragraft " in part)
    name, *words = shlex.split(ours[ours.index("loragraft ") :])[1:]
    assert command_named(name).make_context(name, words).params
