"""The command line within this process, where the process itself is not the point: a start takes half a second."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path

from click.testing import CliRunner

from loragraft.cli import app


def loragraft(*words: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """What `loragraft WORDS` gives. Raises what it lets through, which would be a traceback."""
    with contextlib.chdir(cwd) if cwd is not None else contextlib.nullcontext():
        result = CliRunner().invoke(app, [str(word) for word in words], prog_name="loragraft")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return subprocess.CompletedProcess(words, result.exit_code, result.stdout, result.stderr)
