"""Parts of an adapter that have no place where it is to go."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from loragraft.adapters.lora import Adapter
from loragraft.errors import AdapterError
from loragraft.units import names_text


def refuse_parts(
    adapter: Adapter,
    parts: Iterable[tuple[str, Collection[str]]],
    why: str,
    *,
    hint: str,
    expected: str | None = None,
) -> None:
    """Raises AdapterError for the first of `parts` (what it is, the names in it) that holds anything.

    The message is "holds WHAT, WHY".
    """
    for what, names in parts:
        if names:
            raise AdapterError(
                adapter.path,
                f"holds {what}, {why}",
                found=names_text(sorted(names)),
                expected=expected,
                hint=hint,
            )
