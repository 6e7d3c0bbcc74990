"""Writes docs/cli.md from what `loragraft COMMAND --help` is made of; tests/cli/test_docs.py fails when it is stale."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import typer.main

from loragraft.cli import COMMANDS, app

INTRODUCTION = """# Command line

Written by `make docs` from the commands themselves; `loragraft COMMAND --help` shows the same.

Results go to stdout, all else to stderr. Exit codes: 0 done; 1 an error in the input or on the machine, one line on
stderr that names the file, what was found and what was expected; 2 wrong usage; 130 interrupted. An output file appears
whole or not at all. Colours and progress bars are off when the output is no terminal, or with NO_COLOR.
`loragraft --install-completion` teaches your shell the commands and options; `loragraft --version` prints the version.

Every command also takes `--quiet` (`-q`: results and errors only), `--verbose` (`-v`: say more) and `--help` (`-h`).
"""
COMMON = {"quiet", "verbose", "help"}


def page() -> str:
    commands: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    panels = dict.fromkeys(panel for panel, _ in COMMANDS)
    overview = [
        f"- {panel}: " + ", ".join(f"[{name}](#{name})" for other, name in COMMANDS if other == panel)
        for panel in panels
    ]
    return "\n".join([INTRODUCTION, *overview, "", *(section(name, commands[name]) for _, name in COMMANDS)])


def section(name: str, command: Any) -> str:
    arguments = [param for param in command.params if param.param_type_name == "argument"]
    options = [
        param for param in command.params if param.param_type_name == "option" and param.name not in COMMON
    ]
    usage = " ".join(
        ["loragraft", name, "[OPTIONS]", *(param.metavar or param.name.upper() for param in arguments)]
    )
    examples = "\n".join(importlib.import_module(f"loragraft.cli.{name}").EXAMPLES)
    lines = [f"## {name}\n", f"```\n{usage}\n```\n", markdown(command.help), ""]
    lines += [f"- `{param.metavar or param.name.upper()}`: {markdown(param.help)}" for param in arguments]
    lines += [f"- {spelling(param)}: {markdown(param.help)}{default(param)}" for param in options]
    return "\n".join([*lines, "", f"```\n{examples}\n```\n"])


def spelling(option: Any) -> str:
    value = "" if option.is_flag else " " + (option.metavar or choices(option) or kind(option))
    names = [f"`{name}{value}`" for name in sorted(option.opts, key=len, reverse=True)]
    return ", ".join(names + [f"`{name}`" for name in option.secondary_opts])


def choices(option: Any) -> str:
    return "|".join(getattr(getattr(option, "type_descriptor", option), "choices", None) or ())


def kind(option: Any) -> str:
    return "FILE" if option.name in ("text", "file", "output") else option.name.upper()


def default(option: Any) -> str:
    if isinstance(option.show_default, str):
        return f" Default: {option.show_default}."
    if option.is_flag or option.default is None or option.required or option.default in ((), []):
        return ""
    return f" Default: {option.default}."


def markdown(text: str | None) -> str:
    """Typer's markup as Markdown's."""
    text = re.sub(r"\[/?bold\]", "**", text or "").replace(r"\[", "[")
    return re.sub(r"<[^<>\s]+>", lambda tag: f"`{tag[0]}`", text)


if __name__ == "__main__":
    (Path(__file__).parent / "cli.md").write_text(page())
