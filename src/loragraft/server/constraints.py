"""Replies that must follow a JSON schema or a grammar, by llguidance's token masks.

Source: github.com/guidance-ai/llguidance (an Earley parser over a lexer of derivatives; masks in tens of microseconds).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import llguidance
import llguidance.numpy as masks
import numpy as np

from loragraft.arrays import Floats
from loragraft.errors import LoragraftError
from loragraft.inference.scheduler.request import Constraint
from loragraft.inference.tokenizer import Tokenizer
from loragraft.server.errors import ApiError
from loragraft.server.grammar_process import LIMITS
from loragraft.server.narrowing import narrowed
from loragraft.system.confined import Confined

_compiler = Confined(Path(__file__).with_name("grammar_process.py"), ("llguidance",), "grammar")


class Grammars:
    """Makes constraints for one vocabulary. Takes time: not for the event loop."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    @cached_property
    def _vocabulary(self) -> llguidance.LLTokenizer:
        return llguidance.LLTokenizer(
            llguidance.TokenizerWrapper(_Vocabulary(self._tokenizer)),
            n_vocab=self._tokenizer.size,
            eos_token=sorted(self._tokenizer.end_ids),
        )

    def any_object(self) -> Callable[[], Constraint]:
        """Any JSON object."""
        return self.json_schema({"type": "object"}, "response_format")

    def json_schema(self, schema: dict[str, Any], param: str) -> Callable[[], Constraint]:
        """JSON that `schema` allows. Raises ApiError naming `param` for a schema that cannot be followed."""
        try:
            text = json.dumps(narrowed(schema))
        except RecursionError:
            raise ApiError(f"{param}: it is nested too deeply", param=param) from None
        return self._begun(param, "schema", text)

    def grammar(self, text: str, param: str = "grammar") -> Callable[[], Constraint]:
        """Text of a GBNF grammar (llama.cpp's) or a Lark one (llguidance's)."""
        return self._begun(param, "grammar", text)

    def _begun(self, param: str, kind: str, text: str) -> Callable[[], Constraint]:
        if not self._tokenizer.end_ids:
            raise ApiError(f"{param}: the model has no token that ends a reply", param=param)
        found = _compiler.ask({"kind": kind, "text": text})
        if "problem" in found:
            raise ApiError(f"{param}: {_in_a_line(found['problem'])}", param=param)
        limits = llguidance.LLParserLimits(**LIMITS)
        matcher = llguidance.LLMatcher(self._vocabulary, found["answer"], log_level=0, limits=limits)
        if problem := matcher.get_error():
            raise ApiError(f"{param}: {_in_a_line(problem)}", param=param)
        return lambda: _Matching(matcher.deep_copy(), self._tokenizer.size, param)


class _Vocabulary:
    """What llguidance's TokenizerWrapper asks of a tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = min(tokenizer.end_ids)
        self.bos_token_id = tokenizer.bos
        self.tokens = [tokenizer.piece(token) for token in range(tokenizer.size)]
        self.special_token_ids = [token for token, piece in enumerate(self.tokens) if not piece]
        for token in self.special_token_ids:
            self.tokens[token] = b"\xff" + tokenizer.piece(token, show_special=True)

    def __call__(self, text: str | bytes) -> list[int]:
        if isinstance(text, bytes):
            text = text.decode(errors="replace")
        ids: list[int] = self._tokenizer.encode(text, add_special=False).tolist()
        return ids


class _Matching:
    """One reply under a grammar."""

    def __init__(self, matcher: llguidance.LLMatcher, size: int, param: str) -> None:
        self._matcher = matcher
        self._mask = masks.allocate_token_bitmask(1, size)
        self._size = size
        self._param = param

    def mask(self, logits: Floats) -> None:
        masks.fill_next_token_bitmask(self._matcher, self._mask, 0)
        self._check()
        allowed = np.unpackbits(self._mask[0].view(np.uint8), bitorder="little")[: len(logits)].astype(bool)
        logits[: len(allowed)][~allowed] = -np.inf
        logits[len(allowed) :] = -np.inf

    def accept(self, token: int) -> bool:
        self._matcher.consume_token(token)
        self._check()  # one that failed has stopped, too
        return bool(self._matcher.is_stopped())

    def _check(self) -> None:
        if problem := self._matcher.get_error():
            raise LoragraftError(self._param, f"cannot be followed: {_in_a_line(problem)}")


def _in_a_line(problem: object) -> str:
    """The first line, and where that only announces (`regex parse error:`) the last, which says what it is."""
    lines = str(problem).strip().splitlines()
    if not lines:
        return "not understood"
    return (
        f"{lines[0]} {lines[-1].strip()}"[:300]
        if len(lines) > 1 and lines[0].endswith(":")
        else lines[0][:300]
    )
