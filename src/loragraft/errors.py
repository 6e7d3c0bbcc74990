"""Every error that loragraft raises on purpose.

    LoragraftError            anything a user can act on: one line, exit code 1
    ├── FormatError           a file's bytes are not what its format demands
    │   ├── GGUFError
    │   ├── CheckpointError   safetensors, config.json, tokenizer.json
    │   └── ImatrixError
    ├── AdapterError          an adapter that does not fit, or holds what is not supported
    │   └── UnknownAdapterError   no adapter has this name
    ├── UnsupportedError      well-formed, but outside what loragraft does (architecture, type, tokenizer)
    ├── QuantizeError         weights that cannot be quantized as asked (NaN, missing importance, ...)
    ├── TextError             a text that cannot be measured on
    ├── GraphError            a graph that breaks the rules of graph/spec.py, or a batch that does not fit one
    ├── PoolError             no room for more keys and values, within the bytes that were allowed
    ├── BusyError            a scheduler has too many requests waiting
    ├── TimeLimitError       a request took longer than it may
    ├── ContextError         a prompt that leaves no room in the model's context
    └── OutputError           the target cannot be written (no space, read-only, same as the input)

A message names the object, what was found, what was expected and what to do, in one line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from numbers import Integral, Real
from os import PathLike
from typing import Self

#: Characters of each part of a message; longer ones are cut, for a file may hold a "name" of any length.
_MAX_FACT, _MAX_SUBJECT = 500, 4200
#: What stands before the host of a URL: a user's name and password, which do not belong into a log.
_PASSWORD = re.compile(r"(?<=://)[^/@\s]+(?=@)")


class LoragraftError(Exception):
    """Base of all errors a user can act on.

    `LoragraftError(subject, problem, found=, expected=, hint=)` renders as
    ``subject: problem: found F, expected E; hint``. Facts are cut to a readable length, and what is not printable (line
    breaks, a terminal's control sequences, bytes that are not UTF-8) is shown by its escape: both may be a stranger's.
    """

    def __init__(
        self,
        subject: str | PathLike[str],
        problem: str,
        *,
        found: object = None,
        expected: object = None,
        hint: str | None = None,
    ) -> None:
        self.subject = str(subject)
        self.problem = problem
        self.found = found
        self.expected = expected
        self.hint = hint
        super().__init__(self._render())

    def __reduce__(self) -> tuple[Callable[[], Self], tuple[()]]:
        """For pickling: an error of a worker process reaches its parent."""
        facts = {"found": self.found, "expected": self.expected}
        facts = {name: None if fact is None else str(fact) for name, fact in facts.items()}
        return partial(type(self), self.subject, self.problem, **facts, hint=self.hint), ()

    def within(self, place: str | PathLike[str]) -> Self:
        """The same error, naming the file that its subject lies in."""
        return self.about(f"{place}: {self.subject}")

    def about(self, subject: str | PathLike[str]) -> Self:
        """The same error, of `subject`."""
        return type(self)(
            subject,
            self.problem,
            found=self.found,
            expected=self.expected,
            hint=self.hint,
        )

    def _render(self) -> str:
        facts = []
        if self.found is not None:
            facts.append(f"found {_brief(self.found)}")
        if self.expected is not None:
            facts.append(f"expected {_brief(self.expected)}")
        text = f"{_brief(self.subject, _MAX_SUBJECT)}: {_brief(self.problem)}"
        if facts:
            text += ": " + ", ".join(facts)
        if self.hint:
            text += f"; {self.hint}"
        return printable(_PASSWORD.sub("***", text))


@contextmanager
def naming(place: str | PathLike[str]) -> Iterator[None]:
    """Errors raised inside name `place`, the file that the work is about, if they do not already."""
    try:
        yield
    except LoragraftError as error:
        if str(place) in error.subject:
            raise
        raise error.within(place) from None


@contextmanager
def advising(hint: str, *kinds: type[LoragraftError]) -> Iterator[None]:
    """Errors of these `kinds` (none: any) raised inside that say nothing of what to do next say `hint`."""
    try:
        yield
    except LoragraftError as error:
        if error.hint or (kinds and not isinstance(error, kinds)):
            raise
        facts = {"found": error.found, "expected": error.expected}
        raise type(error)(error.subject, error.problem, **facts, hint=hint) from None


def check_number(name: str, value: object, kind: type[int | float], *, least: float | None = None) -> None:
    """Raises LoragraftError if the argument `name` is not a number of this `kind` (a whole one, for int), or below
    `least`."""
    numbers = (int, Integral) if kind is int else (int, float, Real)
    if isinstance(value, bool) or not isinstance(value, numbers):
        wanted = "a whole number" if kind is int else "a number"
        raise LoragraftError(name, "is not a number", found=repr(value)[:80], expected=wanted)
    if least is not None and not value >= least:  # type: ignore[operator]
        raise LoragraftError(name, "is too small", found=value, expected=f"at least {least}")


def printable(text: str) -> str:
    """`text` in one line, whatever is not printable as its escape."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def _brief(part: object, limit: int = _MAX_FACT) -> str:
    text = str(part)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


class FormatError(LoragraftError):
    """A file's bytes are not what its format demands."""


class GGUFError(FormatError):
    """A GGUF file that is malformed, truncated or lies about itself."""


class CheckpointError(FormatError):
    """A Hugging Face folder (safetensors, config.json, tokenizer.json) that is malformed or incomplete."""


class ImatrixError(FormatError):
    """An importance-matrix file that is malformed or does not fit the model."""


class ContextError(LoragraftError):
    """A prompt that leaves no room in the model's context."""


class AdapterError(LoragraftError):
    """An adapter that does not fit the base, or holds something that would not be honoured."""


class UnknownAdapterError(AdapterError):
    """No adapter has this name."""


class UnsupportedError(LoragraftError):
    """Well-formed input outside what loragraft does."""


class QuantizeError(LoragraftError):
    """Weights that cannot be quantized as asked."""


class TextError(LoragraftError):
    """A text that cannot be measured on."""


class GraphError(LoragraftError):
    """A graph that breaks the rules of `loragraft.graph.spec`, or a batch that does not fit it."""


class PoolError(LoragraftError):
    """No room for more keys and values within the bytes that were allowed: closing a sequence makes some."""


class BusyError(LoragraftError):
    """Too many requests wait for a scheduler, or it is stopping: the caller should come back later."""


class TimeLimitError(LoragraftError):
    """A request was not finished within its time limit."""


class OutputError(LoragraftError):
    """A target that cannot be written."""
