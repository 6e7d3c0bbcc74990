"""The metadata of a model card: YAML between two lines of dashes at the beginning of README.md, read within bounds.

YAML's aliases make a tree of 10^12 nodes out of 500 bytes, and its parser takes seconds for a megabyte: so there are no
aliases, and no more of anything than a card needs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from loragraft.errors import CheckpointError
from loragraft.formats.textfile import read_start

#: Bytes up to the second line of dashes. The largest cards list some hundred results of benchmarks.
MAX_FRONT_MATTER = 1 << 19
#: Values, characters of a text, and entries of a list. Work on a name grows with the square of its length.
_MAX_VALUES, _MAX_TEXT, _MAX_ENTRIES, _MAX_DEPTH = 50_000, 4096, 1000, 32

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_card(folder: Path) -> dict[str, Any]:
    """What the model card in `folder` says; nothing, if there is none. Raises CheckpointError for one that is malformed
    or beyond the bounds, whatever is wrong with it."""
    path = folder / "README.md"
    if not path.exists():
        return {}
    lines = read_start(path, MAX_FRONT_MATTER, CheckpointError).decode("utf-8", "replace").splitlines()
    if not lines or lines[0] != "---":
        return {}
    if "---" not in lines[1:]:
        raise CheckpointError(
            path, "its metadata have no end", expected=f"--- within {MAX_FRONT_MATTER} bytes"
        )
    text = "\n".join(lines[1 : lines.index("---", 1)]) + "\n"
    # As gguf-py reads cards: the country code no is not a falsehood, and a tab is two spaces.
    text = text.replace("- no\n", '- "no"\n').replace("\t", "  ")
    try:
        _check(path, text)
        card = yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, OverflowError, AttributeError) as problem:
        raise CheckpointError(
            path, "its metadata are not YAML", found=" ".join(str(problem).split())
        ) from None
    if card is None:
        return {}
    if not isinstance(card, dict):
        raise CheckpointError(path, "its metadata is not a table", found=type(card).__name__)
    return {key: _bounded(path, key, value) for key, value in card.items() if isinstance(key, str)}


def _check(path: Path, text: str) -> None:
    """Raises CheckpointError for more than a card needs."""
    depth = 0
    for values, event in enumerate(yaml.parse(text, _Loader)):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent):
            raise CheckpointError(path, "its metadata uses YAML aliases", found=f"*{event.anchor}")
        if values > _MAX_VALUES or depth > _MAX_DEPTH:
            raise CheckpointError(
                path,
                "its metadata is too large",
                expected=f"at most {_MAX_VALUES} values, {_MAX_DEPTH} levels deep",
            )


def _bounded(path: Path, key: str, value: Any) -> Any:
    """`value`, with texts and tables alone in a list."""
    if isinstance(value, str) and len(value) > _MAX_TEXT:
        raise CheckpointError(
            path, f"{key} is too long", found=f"{len(value)} characters", expected=_MAX_TEXT
        )
    if isinstance(value, list):
        if len(value) > _MAX_ENTRIES:
            raise CheckpointError(
                path, f"{key} has too many entries", found=len(value), expected=_MAX_ENTRIES
            )
        return [_bounded(path, key, entry) for entry in value if isinstance(entry, str | dict)]
    return value
