"""Names of adapters: they come back in headers, lists and metrics, and are parts of what a request calls its model."""

from __future__ import annotations

MOST_NAME = 200  # characters


def is_name(text: str) -> bool:
    """Whether an adapter can be called so."""
    return 0 < len(text) <= MOST_NAME and text.isprintable() and not set(text) & set("/:")
