"""Compiles grammars and JSON schemas: the program that `constraints.py` asks.

A client's grammar may take any time and memory, and a chain of 8000 rules takes more stack than there is, which ends
the process: this one, not the server. What passed here has been compiled and begun once, in a smaller stack than the
server's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import llguidance
from llguidance.gbnf_to_lark import any_to_lark

#: Seconds of processor time for one grammar, and bytes of memory beside those of the process itself.
MAX_SECONDS, MAX_MEMORY = 2, 1 << 29
#: Characters of a grammar or a schema.
MAX_TEXT = 1 << 16
#: What one step may cost: less than llguidance's own defaults, as a step holds back everybody's next token.
LIMITS: dict[str, Any] = {
    "initial_lexer_fuel": 200_000,
    "step_lexer_fuel": 20_000,
    "step_max_items": 20_000,
    "max_items_in_row": 2000,
    "max_lexer_states": 50_000,
    "max_grammar_size": 100_000,
}
#: White space only where Python's json.dumps puts it: a small model else fills its reply with line breaks.
_PLAIN_JSON: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_STACK = 4 << 20


def compiled(kind: str, text: str) -> str:
    """In llguidance's own form. Raises whatever it raises."""
    if len(text) > MAX_TEXT:
        raise ValueError(f"found {len(text)} characters, expected at most {MAX_TEXT}")
    if kind == "schema":
        found = llguidance.LLMatcher.grammar_from_json_schema(text, defaults=_PLAIN_JSON)
    else:  # GBNF (llama.cpp's) or Lark (llguidance's)
        found = llguidance.LLMatcher.grammar_from_lark(any_to_lark(text))
    limits = llguidance.LLParserLimits(**LIMITS)
    begun = llguidance.LLMatcher(llguidance.LLTokenizer("byte"), found, log_level=0, limits=limits)
    begun.compute_bitmask()
    if problem := begun.get_error():
        raise ValueError(problem)
    return found


def answer(request: dict[str, str]) -> str:
    """See `system/confined_process.py`."""
    return _with_stack(lambda: compiled(request["kind"], request["text"]))


def _with_stack(work: Callable[[], str]) -> str:
    results: list[str] = []
    problems: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as problem:
            problems.append(problem)

    threading.stack_size(_STACK)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if problems:
        raise problems[0]
    return results[0]
