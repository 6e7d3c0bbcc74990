"""What the metadata that every reader of models relies on must be: facts as a table, checked when a model is opened.

Sizes, `<arch>.*`, are checked where they are read (`archs.hparams`). Everything else is carried along, whatever it is.
Types as in llama-vocab.cpp of llama.cpp, integers of any width.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from loragraft.errors import GGUFError
from loragraft.formats.gguf.values import Metadata, Value, ValueType

#: Characters of a token; the longest in use are some hundred spaces. Finding all ways to make one of two others takes
#: time by the square of it.
MAX_TOKEN = 1024

_INTEGERS = {getattr(ValueType, f"{sign}INT{bits}") for sign in ("", "U") for bits in (8, 16, 32, 64)}
_FLOATS = {ValueType.FLOAT32, ValueType.FLOAT64}


@dataclass(frozen=True, slots=True)
class _Rule:
    keys: re.Pattern[str]
    expected: str
    holds: Callable[[Value], bool]


def _rule(keys: str, expected: str, holds: Callable[[Value], bool]) -> _Rule:
    return _Rule(re.compile(keys), expected, holds)


_RULES = (
    _rule(
        r"general\.(type|name)|tokenizer\.ggml\.(model|pre)|tokenizer\.chat_template",
        "a string",
        lambda value: value.type is ValueType.STRING,
    ),
    _rule(
        r"tokenizer\.ggml\.(tokens|merges)|tokenizer\.chat_templates",
        "an array of strings",
        lambda value: value.item is ValueType.STRING,
    ),
    _rule(r"tokenizer\.ggml\.token_type", "an array of integers", lambda value: value.item in _INTEGERS),
    _rule(r"tokenizer\.ggml\.scores", "an array of floats", lambda value: value.item in _FLOATS),
    _rule(
        r"tokenizer\.ggml\.\w+_token_id|general\.(file_type|quantization_version)",
        "an integer",
        lambda value: value.type in _INTEGERS,
    ),
    _rule(r"tokenizer\.ggml\.add_\w+", "a boolean", lambda value: value.type is ValueType.BOOL),
)


def check_metadata(path: Path, metadata: Metadata) -> None:
    """Raises `GGUFError` for a key of another type than its readers expect, or lists that do not belong together."""
    for key, value in metadata.items():
        rule = next((rule for rule in _RULES if rule.keys.fullmatch(key)), None)
        if rule is not None and not rule.holds(value):
            found = value.type.name + (f" of {value.item.name}" if value.item is not None else "")
            raise GGUFError(path, f"{key} has a wrong type", found=found, expected=rule.expected)
    tokens = metadata.get("tokenizer.ggml.tokens")
    size = 0 if tokens is None else len(tokens.data)
    if tokens is not None and (longest := max(map(len, tokens.data), default=0)) > MAX_TOKEN:
        raise GGUFError(
            path, "a token is too long", found=f"{longest} characters", expected=f"at most {MAX_TOKEN}"
        )
    for key in ("tokenizer.ggml.token_type", "tokenizer.ggml.scores"):
        if key in metadata and len(metadata[key].data) != size:
            raise GGUFError(
                path,
                f"{key} is not as long as tokenizer.ggml.tokens",
                found=len(metadata[key].data),
                expected=size,
            )


def merge_pairs(merges: Sequence[str]) -> list[tuple[str, str]]:
    """The parts of merges "left right". Raises ValueError for one that does not have two parts."""
    halves = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    for merge, (left, right) in zip(merges, halves, strict=True):
        if not left or not right:
            raise ValueError(f"merge {merge!r} does not have two parts")
    return halves
