"""docs/cli.md is what --help prints, and examples are real commands with real options."""

from __future__ import annotations

import importlib
import runpy
import shlex
from collections.abc import Iterator

import pytest
import typer.main

from loragraft.cli import COMMANDS, app
from paths import ROOT


def test_the_page_is_current() -> None:
    page = runpy.run_path(str(ROOT / "docs" / "make_cli.py"))["page"]()
    assert (ROOT / "docs" / "cli.md").read_text() == page, "run `make docs`"


def examples() -> Iterator[str]:
    for _, name in COMMANDS:
        yield from importlib.import_module(f"loragraft.cli.{name}").EXAMPLES


@pytest.mark.parametrize("line", list(examples()))
def test_examples_parse(line: str) -> None:
    words = shlex.split(line.split(" > ")[0])
    if "|" in words:
        parts = line.split(" | ")
        words = shlex.split(next(part for part in parts if part.startswith("loragraft")))
    assert words[0] == "loragraft"
    group = typer.main.get_command(app)
    command = group.commands[words[1]]  # type: ignore[attr-defined]
    context = command.make_context(words[1], words[2:], resilient_parsing=False)
    assert context.params
