"""Runs that are killed after they have written some chunks of rows."""

from __future__ import annotations

import signal
import subprocess
import sys

_DOOM = """
import os, signal, sys
from loragraft.streaming import steps
from loragraft.streaming.journal import Journal

chunks, weights, *arguments = sys.argv[1:]
if int(weights):
    steps.CHUNK_WEIGHTS = int(weights)
add, count = Journal.add, 0

def add_or_die(self, *span):
    global count
    add(self, *span)
    count += 1
    if count == int(chunks):
        os.kill(os.getpid(), signal.SIGKILL)

Journal.add = add_or_die
"""


def killed_after(chunks: int, call: str, *arguments: object, weights: int = 0) -> None:
    """Run the Python text `call`, which finds its strings in `arguments`, until so many chunks are written, each of
    `weights` weights, or of as many as usual."""
    words = [str(word) for word in (chunks, weights, *arguments)]
    done = subprocess.run([sys.executable, "-c", _DOOM + call, *words])
    assert done.returncode == -signal.SIGKILL
