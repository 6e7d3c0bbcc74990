"""JSON that may be hostile: too large, too deep, with repeated keys, or not JSON at all."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from loragraft.errors import FormatError, LoragraftError, advising
from loragraft.formats.impostors import refuse_impostor
from loragraft.system.mapped import map_file

#: The largest tokenizer.json in use take about 40 MB.
MAX_BYTES = 1 << 26
_BOM = b"\xef\xbb\xbf"
_WHOLE = "was it copied whole, or edited? Take it again from where it comes from"
#: Python makes objects of some 64 bytes out of values of 2, objects with keys of their own out of `{}`: what the values
#: of a text take in memory beside its characters is bounded before they are made.
_VALUE, _OBJECT = 64, 240
_FREE, _PER_BYTE = 100_000_000, 3


def load_json(path: Path, error: type[FormatError]) -> dict[str, Any]:
    """The JSON object in the file at `path`. Raises `error`."""
    data = _read(path, error)
    refuse_impostor(path, data, error)
    with advising(_WHOLE):
        return parse_json(data.removeprefix(_BOM), path, "the file", error)


def _read(path: Path, error: type[FormatError]) -> bytes:
    """The file's bytes. The mapping is gone before they are parsed: its pages would count as memory in use."""
    with map_file(path, error) as mapping:
        if len(mapping) > MAX_BYTES:
            raise error(
                path, "too large for a JSON file", found=f"{len(mapping)} bytes", expected=f"<= {MAX_BYTES}"
            )
        return mapping[:]


def parse_json(data: bytes, path: Path, what: str, error: type[LoragraftError]) -> dict[str, Any]:
    """The JSON object that `data`, named `what` in errors, holds. Raises `error`, also for a repeated key, and for more
    small values than files in use have."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            seen: set[str] = set()
            repeated = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
            raise error(path, f"{what} holds a key twice", found=repr(repeated))
        return found

    values = _VALUE * (data.count(b",") + data.count(b"[")) + _OBJECT * data.count(b"{")
    if values > _FREE + _PER_BYTE * len(data):
        raise error(path, f"{what} holds too many small values", found=f"{data.count(b',') + 1} of them")
    escapes = re.search(rb"\\u[dD]", data) is not None
    try:
        text = data.decode()
        del data  # the text and what is made of it are enough
        value = json.loads(text, object_pairs_hook=unique)
        if escapes:  # half of a pair of surrogates is not text
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise error(path, f"{what} holds half of a surrogate pair, which is not a character") from None
    except UnicodeDecodeError as problem:
        raise error(path, f"{what} is not UTF-8", found=f"a wrong byte at offset {problem.start}") from None
    except RecursionError:
        raise error(path, f"{what} is nested too deeply") from None
    except ValueError as problem:  # also an integer of more digits than Python converts
        raise error(path, f"{what} is not JSON", found=str(problem)) from None
    if not isinstance(value, dict):
        raise error(path, f"{what} does not hold a JSON object", found=type(value).__name__)
    return value
