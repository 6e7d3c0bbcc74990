"""Ctrl-C and termination as exceptions, held back over the few steps that must not be torn apart.

Python raises KeyboardInterrupt between any two instructions: also after a file was created and before anyone knows that
it must be removed. The command line installs these handlers; in a program that does not, `held` changes nothing.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_held = 0
_waiting: int | None = None


def install() -> None:
    """SIGINT raises KeyboardInterrupt, SIGTERM SystemExit, so that either unwinds the stack. For the main thread."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _handle)


@contextmanager
def held() -> Iterator[None]:
    """What arrives within is raised at the end."""
    global _held, _waiting
    _held += 1
    try:
        yield
    finally:
        _held -= 1
        if not _held and _waiting is not None:
            number, _waiting = _waiting, None
            _raise(number)


def _handle(number: int, frame: FrameType | None) -> None:
    global _waiting
    if _held:
        _waiting = number
    else:
        _raise(number)


def _raise(number: int) -> None:
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
