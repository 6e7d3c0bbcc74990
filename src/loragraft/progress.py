"""How a verb tells its caller about work under way; the CLI draws bars from it, a library may ignore it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """`total` and `done` are in the unit of the work at hand (bytes for streaming, tokens for evaluation)."""

    def start(self, label: str, total: int) -> None:
        """A piece of work begins; an earlier one, if any, is over."""

    def advance(self, done: int) -> None:
        """`done` more units are finished. May be called from worker threads."""

    def note(self, message: str) -> None:
        """Something worth knowing happened (a warning, a fallback taken); one line."""


class Silent:
    """The progress of a caller who wants none."""

    def start(self, label: str, total: int) -> None:
        pass

    def advance(self, done: int) -> None:
        pass

    def note(self, message: str) -> None:
        pass


SILENT: Progress = Silent()


class Noted:
    """Passes everything on to `progress`, and keeps the notes for the report."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self.notes: list[str] = []

    def start(self, label: str, total: int) -> None:
        self._progress.start(label, total)

    def advance(self, done: int) -> None:
        self._progress.advance(done)

    def note(self, message: str) -> None:
        self.notes.append(message)
        self._progress.note(message)
