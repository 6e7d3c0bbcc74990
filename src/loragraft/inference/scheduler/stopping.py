"""Stop texts: a reply ends before the first of them, which is never shown, not even a part of it."""

from __future__ import annotations

from collections.abc import Sequence


class StopTexts:
    """Passes text on as soon as it cannot be the beginning of a stop text."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.found: str | None = None
        """The stop text that came."""

    @property
    def hit(self) -> bool:
        return self.found is not None

    def push(self, text: str) -> str:
        """What can be shown once `text` has come. After a stop text `found` is that and nothing more is shown."""
        if self.hit:
            return ""
        if not self._stops:
            return text
        self._held += text
        starts = [(at, stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if starts:
            first, self.found = min(starts)
            shown, self._held = self._held[:first], ""
            return shown
        keep = max(self._overlap(stop) for stop in self._stops)
        shown = self._held[: len(self._held) - keep]
        self._held = self._held[len(shown) :]
        return shown

    def finish(self) -> str:
        """What was held back, when no more text comes."""
        shown, self._held = self._held, ""
        return shown

    def _overlap(self, stop: str) -> int:
        """The longest end of the held text that is a beginning of `stop`."""
        for length in range(min(len(stop) - 1, len(self._held)), 0, -1):
            if self._held.endswith(stop[:length]):
                return length
        return 0
