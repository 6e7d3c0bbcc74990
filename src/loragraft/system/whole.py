"""Outputs that appear whole or not at all, as context managers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self


class WholeOutput(ABC):
    """A clean exit commits, an exception discards, also one of the commit itself."""

    @abstractmethod
    def commit(self) -> None:
        """Make the output appear."""

    @abstractmethod
    def discard(self) -> None:
        """Leave nothing behind, unless it was committed."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.discard()
            return
        try:
            self.commit()
        except BaseException:
            self.discard()
            raise
