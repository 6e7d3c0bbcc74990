"""Writes the facts of the tensor types for the C++ core, from the Python package's table: one source for both.

Usage: make_types.py SOURCES OUTPUT, SOURCES the folder of the package (run by the build; standard library only).
"""

from __future__ import annotations

import sys
from pathlib import Path


def main(sources: str, target: str) -> None:
    sys.path.insert(0, sources)
    from loragraft.quants.types import BY_NAME

    lines = ["// Made by native/make_types.py from quants/types.py; see native/types.h."]
    for kind in BY_NAME.values():
        if kind.holds_weights:
            scales = [-2, -2] if kind.scales is None else [*kind.scales, -1, -1]
            facts = kind.name, kind.id, kind.block, kind.bytes, *scales[:2]
            lines.append(f"LG_TYPE({', '.join(map(str, facts))})")
    text = "\n".join(lines) + "\n"
    path = Path(target)
    if not path.exists() or path.read_text() != text:  # else everything would be compiled anew
        path.write_text(text)


if __name__ == "__main__":
    main(*sys.argv[1:])
