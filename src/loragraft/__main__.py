"""The command `loragraft`, also as `python -m loragraft`."""

from __future__ import annotations

import os
import signal
import sys


def main() -> None:
    """Load the command line, and run it."""
    # No traceback for Ctrl-C before `cli.main` has its own handler.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _open_closed()
    # Threads are ours: NumPy's own would stand in their way, and make sums depend on how many there are.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from loragraft.cli import main as run

    run()


def _open_closed() -> None:
    """Standard streams that are closed are opened, or a model that is written could get their number, and our lines.

    What is written to stdout then fails, as it should: nobody would see it. Of stdin there is nothing to read.
    """
    for number, mode in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_RDWR)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, mode)  # the lowest number that is free: this one
    sys.stdin = sys.stdin or open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115


if __name__ == "__main__":
    main()
