"""Runs that are ended after they have written some chunks of rows, by a signal that they send themselves: the moment
does not depend on how fast the machine is."""

from __future__ import annotations

import signal
import subprocess
import sys

_DOOM = """
import os, signal, sys, time
from loragraft.streaming import steps
from loragraft.streaming.journal import Journal

number, chunks, weights, *arguments = sys.argv[1:]
if int(weights):
    steps.CHUNK_WEIGHTS = int(weights)
add, count = Journal.add, 0

def add_or_die(self, *span):
    global count
    add(self, *span)
    count += 1
    if count == int(chunks):
        os.kill(os.getpid(), int(number))

Journal.add = add_or_die
"""


#: The command line, with `arguments`.
_COMMAND = """
sys.argv[:] = ["loragraft", *arguments]
from loragraft.__main__ import main
main()
"""


def killed_after(chunks: int, call: str, *arguments: object, weights: int = 0) -> None:
    """Run the Python text `call`, which finds its strings in `arguments`, until so many chunks are written, each of
    `weights` weights, or of as many as usual."""
    done = _ended(signal.SIGKILL, chunks, weights, call, arguments)
    assert done.returncode == -signal.SIGKILL


def interrupted_after(
    chunks: int, number: signal.Signals, *words: object, weights: int = 0
) -> subprocess.CompletedProcess[str]:
    """Run the command line with `words`, to which the signal `number` comes when so many chunks are written."""
    return _ended(number, chunks, weights, _COMMAND, words)


def _ended(
    number: signal.Signals, chunks: int, weights: int, call: str, arguments: tuple[object, ...]
) -> subprocess.CompletedProcess[str]:
    words = [str(word) for word in (int(number), chunks, weights, *arguments)]
    command = [sys.executable, "-c", _DOOM + call, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
