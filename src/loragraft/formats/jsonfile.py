"""JSON that may be hostile: too large, too deep, with repeated keys, or not JSON at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from loragraft.errors import FormatError
from loragraft.formats.mapped import map_file

#: The largest tokenizer.json in use take about 40 MB.
MAX_BYTES = 1 << 29


def load_json(path: Path, error: type[FormatError]) -> dict[str, Any]:
    """The JSON object in the file at `path`. Raises `error`."""
    with map_file(path, error) as mapping:
        if len(mapping) > MAX_BYTES:
            raise error(
                path, "too large for a JSON file", found=f"{len(mapping)} bytes", expected=f"<= {MAX_BYTES}"
            )
        return parse_json(mapping[:], path, "the file", error)


def parse_json(text: bytes, path: Path, what: str, error: type[FormatError]) -> dict[str, Any]:
    """The JSON object that `text`, named `what` in errors, holds. Raises `error`, also for a repeated key."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            repeated = next(name for name in names if names.count(name) > 1)
            raise error(path, f"{what} holds a key twice", found=repr(repeated))
        return found

    try:
        value = json.loads(text.decode(), object_pairs_hook=unique)
        if b"\\ud" in text.lower():  # half of a pair of surrogates is no text
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise error(path, f"{what} holds half of a surrogate pair, which is no character") from None
    except UnicodeDecodeError as problem:
        raise error(path, f"{what} is not UTF-8", found=f"a wrong byte at offset {problem.start}") from None
    except RecursionError:
        raise error(path, f"{what} is nested too deeply") from None
    except ValueError as problem:  # also an integer of more digits than Python converts
        raise error(path, f"{what} is not JSON", found=str(problem)) from None
    if not isinstance(value, dict):
        raise error(path, f"{what} does not hold a JSON object", found=type(value).__name__)
    return value
