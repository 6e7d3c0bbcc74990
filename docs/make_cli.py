"""Writes docs/cli.md from what every command's --help prints; tests/cli/test_docs.py fails when it is stale."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
INTRODUCTION = """# Command line

What `--help` prints; `make docs` writes this page anew.

Results go to stdout, all else to stderr. Exit codes: 0 done; 1 an error in the input or on the machine, one line on
stderr that names the file, what was found and what was expected; 2 wrong usage; 130 interrupted. An output file appears
whole or not at all. `loragraft --install-completion` teaches your shell the commands and options.
"""


def help_of(*command: str) -> str:
    plain = {**os.environ, "NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "100", "TERMINAL_WIDTH": "100"}
    done = subprocess.run(
        [sys.executable, "-m", "loragraft", *command, "--help"],
        capture_output=True,
        text=True,
        check=True,
        env=plain,
    )
    return "\n".join(line.rstrip() for line in done.stdout.strip().splitlines())


def page() -> str:
    from loragraft.cli import COMMANDS

    parts = [INTRODUCTION, f"## loragraft\n\n```\n{help_of()}\n```\n"]
    parts += [f"## loragraft {name}\n\n```\n{help_of(name)}\n```\n" for _, name in COMMANDS]
    return "\n".join(parts)


if __name__ == "__main__":
    (HERE / "cli.md").write_text(page())
