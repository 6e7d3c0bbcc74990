"""Replies that must follow a JSON schema or a grammar, by llguidance's token masks.

Source: github.com/guidance-ai/llguidance (an Earley parser over a lexer of derivatives; masks in tens of microseconds).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cached_property
from typing import Any

import llguidance
import llguidance.numpy as masks
import numpy as np
from llguidance.gbnf_to_lark import GbnfToLarkError, any_to_lark

from loragraft.errors import LoragraftError
from loragraft.inference.scheduler.request import Constraint, Floats
from loragraft.inference.tokenizer import Tokenizer
from loragraft.server.errors import ApiError

#: White space only where Python's json.dumps puts it: a small model else fills its reply with line breaks.
_PLAIN_JSON: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
MOST_GRAMMAR = 1 << 18  # characters


class Grammars:
    """Makes constraints for one vocabulary."""

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
        text = json.dumps(schema)
        return self._checked(
            param, text, lambda: llguidance.LLMatcher.grammar_from_json_schema(text, defaults=_PLAIN_JSON)
        )

    def grammar(self, text: str, param: str = "grammar") -> Callable[[], Constraint]:
        """Text of a GBNF grammar (llama.cpp's) or a Lark one (llguidance's)."""
        return self._checked(param, text, lambda: llguidance.LLMatcher.grammar_from_lark(any_to_lark(text)))

    def _checked(self, param: str, text: str, compile_it: Callable[[], str]) -> Callable[[], Constraint]:
        if not self._tokenizer.end_ids:
            raise ApiError(f"{param}: the model has no token that ends a reply", param=param)
        if len(text) > MOST_GRAMMAR:
            raise ApiError(
                f"{param}: found {len(text)} characters, expected at most {MOST_GRAMMAR}", param=param
            )
        try:
            compiled = compile_it()
        except (ValueError, RecursionError, GbnfToLarkError) as error:
            raise ApiError(f"{param}: {_first_line(error)}", param=param) from None
        if problem := llguidance.LLMatcher.validate_grammar(compiled, self._vocabulary):
            raise ApiError(f"{param}: {_first_line(problem)}", param=param)
        return lambda: _Matching(self._vocabulary, compiled, self._tokenizer.size, param)


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

    def __init__(self, vocabulary: llguidance.LLTokenizer, grammar: str, size: int, param: str) -> None:
        self._matcher = llguidance.LLMatcher(vocabulary, grammar, log_level=0)
        self._mask = masks.allocate_token_bitmask(1, size)
        self._size = size
        self._param = param

    def mask(self, logits: Floats) -> None:
        masks.fill_next_token_bitmask(self._matcher, self._mask, 0)
        if problem := self._matcher.get_error():
            raise LoragraftError(self._param, f"cannot be followed: {_first_line(problem)}")
        allowed = np.unpackbits(self._mask[0].view(np.uint8), bitorder="little")[: len(logits)].astype(bool)
        logits[: len(allowed)][~allowed] = -np.inf
        logits[len(allowed) :] = -np.inf

    def accept(self, token: int) -> bool:
        self._matcher.consume_token(token)
        return bool(self._matcher.is_stopped())


def _first_line(problem: object) -> str:
    lines = str(problem).strip().splitlines()
    return lines[0][:300] if lines else "not understood"
