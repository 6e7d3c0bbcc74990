"""Regular expressions that come with a stranger's file, matched in time linear in the name's length.

Python's own engine backtracks: `(a+)+b` takes it longer than anybody waits. RE2 (Russ Cox, "Regular Expression Matching
in the Wild", 2010) does not. What the two read differently, and what RE2 lacks, is refused by name. Where names are not
ASCII, RE2's `\\w` and `\\d` match less than Python's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import re2

#: Characters of one expression. A name of a tensor or of a module has some 60.
MAX_LENGTH = 1000
#: Expressions of one table that are more than a name.
MAX_EXPRESSIONS = 256
_MEMORY = 1 << 20  # bytes for one compiled expression and its automaton

_PLAIN = re.compile(r"[\w\-]+(?:\.[\w\-]+)*", re.ASCII)
_SEARCHED = re.compile(r"\^?((?:[\w\-]|\\\.)+)\$?", re.ASCII)
_TOKEN = re.compile(
    r"\\(?P<escape>.?)|\((?P<group>\?(?!:)[^)]{0,2}\)?)|(?P<posix>\[:)|(?P<count>\{,)", re.DOTALL
)
_ESCAPES = frozenset("dDwWsSbB")


class PatternError(ValueError):
    """An expression that is malformed, too long, or holds what is not supported; the message says what."""


def searcher(expression: str) -> Callable[[str], bool]:
    """Whether `expression` matches anywhere in a name. Raises PatternError."""
    plain = _SEARCHED.fullmatch(expression)
    if plain is None:
        return _compiled(expression, expression)
    text = plain[1].replace("\\.", ".")
    match expression.startswith("^"), expression.endswith("$"):
        case True, True:
            return text.__eq__
        case True, False:
            return lambda name: name.startswith(text)
        case False, True:
            return lambda name: name.endswith(text)
        case _:
            return lambda name: text in name


def whole(expression: str) -> Callable[[str], bool]:
    """Whether `expression` matches the whole of a name. Raises PatternError."""
    if _PLAIN.fullmatch(expression) and "." not in expression:
        return expression.__eq__
    return _compiled(expression, rf"^(?:{expression})$")


class SuffixTable:
    """The value of the first expression that matches the end of a module's name, from a dot on: `get_pattern_key` of
    PEFT (utils/other.py). In an expression that is a plain name, a dot is a dot."""

    def __init__(self, table: Mapping[str, Any] = {}) -> None:
        """Raises PatternError, naming the expression."""
        self._plain: dict[str, tuple[int, Any]] = {}
        self._others: list[tuple[int, Callable[[str], bool], Any]] = []
        for order, (expression, value) in enumerate(table.items()):
            if _PLAIN.fullmatch(expression):
                self._plain[expression] = order, value
                continue
            if len(self._others) == MAX_EXPRESSIONS:
                raise PatternError(f"more than {MAX_EXPRESSIONS} of its expressions are not plain names")
            self._others.append((order, _compiled(expression, rf"^(?:.*\.)?(?:{expression})$"), value))

    def __bool__(self) -> bool:
        return bool(self._plain or self._others)

    def find(self, name: str, default: Any) -> Any:
        """The value for `name`, or `default`."""
        ends = [0, *(at + 1 for at, char in enumerate(name) if char == ".")]
        found = min(
            (self._plain[name[at:]] for at in ends if name[at:] in self._plain), default=None, key=_order
        )
        for order, matches, value in self._others:
            if found is not None and order > found[0]:
                break
            if matches(name):
                return value
        return default if found is None else found[1]


def _order(entry: tuple[int, Any]) -> int:
    return entry[0]


def _compiled(expression: str, whole: str) -> Callable[[str], bool]:
    if len(expression) > MAX_LENGTH:
        raise PatternError(f"an expression of {len(expression)} characters, at most {MAX_LENGTH} are taken")
    for token in _TOKEN.finditer(expression):
        escape, group = token["escape"], token["group"]
        if escape is not None and (not escape or (escape.isalnum() and escape not in _ESCAPES)):
            raise PatternError(f"\\{escape} is not supported")
        if group is not None:
            raise PatternError(
                f"({group} is not supported; neither are flags, named groups, lookahead and lookbehind"
            )
        if token["posix"] or token["count"]:
            raise PatternError(f"{token[0]} is not supported")
    options = re2.Options()
    options.log_errors = False
    options.never_capture = True
    options.max_mem = _MEMORY
    try:
        expression.encode()
        found = re2.compile(whole, options)
    except UnicodeEncodeError:
        raise PatternError("holds half of a surrogate pair, which is not a character") from None
    except re2.error as problem:
        reason = problem.args[0] if problem.args else ""
        raise PatternError(
            reason.decode(errors="replace") if isinstance(reason, bytes) else str(reason)
        ) from None
    return lambda name: found.search(name.encode(errors="surrogateescape")) is not None
