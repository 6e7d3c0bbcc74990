"""What the scheduler tells of its work; whoever wants figures overrides these."""

from __future__ import annotations


class Telemetry:
    """Called from the scheduler's thread. Does nothing."""

    def passed(self, rows: int, sequences: int, seconds: float) -> None:
        """One pass through the model."""

    def made(self, adapters: tuple[str, ...], tokens: int) -> None:
        """Tokens of a reply under the named adapters (none for the base alone)."""

    def read(self, tokens: int, cached: int) -> None:
        """A prompt was admitted, of which `cached` tokens were taken from earlier ones."""

    def guesses(self, guessed: int, right: int) -> None:
        """Tokens were guessed ahead in a reply, of which so many were right."""

    def first_token(self, seconds: float) -> None:
        """From submission to the first token."""

    def ended(self, how: str) -> None:
        """A request ended: "done", "failed" or "cancelled"."""
