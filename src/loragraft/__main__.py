"""The command `loragraft`, also as `python -m loragraft`."""

from __future__ import annotations

import signal


def main() -> None:
    """Load the command line, and run it."""
    # No traceback for Ctrl-C before `cli.main` has its own handler.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from loragraft.cli import main as run

    run()


if __name__ == "__main__":
    main()
