"""docs/cli.md is what --help prints, and examples are real commands with real options."""

from __future__ import annotations

import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path

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


@pytest.mark.parametrize(("name", "_", "command"), COMMANDS)
def test_no_word_is_torn_at_a_line_s_end(name: str, _: str, command: Command) -> None:
    """Lines are joined by spaces: "fine-" and "tune" would be printed as "fine- tune"."""
    assert re.findall(r"\w-\n\s*\w", command.help or "") == []


def commands_shown(page: Path) -> Iterator[str]:
    """The commands in blocks of code, without those that leave words out ("...")."""
    fenced = False
    for line in re.sub(r"\\\n\s*", "", page.read_text()).splitlines():
        fenced ^= line.startswith("```")
        command = line.strip().removeprefix("$ ")
        if (fenced or line.startswith("    ")) and command.startswith("loragraft ") and "..." not in command:
            yield command


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHOWN = [(page.name, line) for page in PAGES if page.name != "cli.md" for line in commands_shown(page)]


def test_pages_show_commands() -> None:
    assert {"README.md", "rounding.md", "serving.md", "scale.md"} <= {page for page, _ in SHOWN}


@pytest.mark.parametrize(("page", "line"), SHOWN)
def test_commands_on_pages_parse(page: str, line: str) -> None:
    name, *words = shlex.split(line, comments=True)[1:]
    assert command_named(name).make_context(name, words).params


#: Files of other projects that pages name without a folder.
FOREIGN = {"llama.cpp", "nvfp4_gemm.py"}
FILES = {
    str(path.relative_to(ROOT))
    for folder in ("src", "native", "tests", "docs", "bench", "examples")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".py", ".cpp", ".h", ".wgsl", ".md", ".json", ".ipynb")
}
ROOMS = {
    path.name
    for folder in ("src/loragraft", "native", "")
    for path in (ROOT / folder).iterdir()
    if path.is_dir()
}


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"], ids=lambda page: page.name
)
def test_files_on_pages_are_there(page: Path) -> None:
    named = set(re.findall(r"`([A-Za-z0-9_/]+\.(?:py|cpp|h|wgsl))`", page.read_text()))
    missing = {
        name
        for name in named - FOREIGN
        if ("/" not in name or name.split("/")[0] in ROOMS)
        and not any(f"/{file}".endswith(f"/{name}") for file in FILES)
    }
    assert missing == set(), "no such file here; one of another project goes into FOREIGN"
