"""Names of adapters: they come back in headers, lists and metrics, and are parts of what a request calls its model."""

from __future__ import annotations

import unicodedata

MOST_NAME = 200  # characters


def is_name(text: str) -> bool:
    """Whether an adapter can be called so. Spaces at the ends, and letters that are composed in another way, would let
    two names look the same."""
    return (
        0 < len(text) <= MOST_NAME
        and text.isprintable()
        and not set(text) & set("/:")
        and text == text.strip()
        and unicodedata.is_normalized("NFC", text)
    )
