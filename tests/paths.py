"""Where the tests' data lies: in the repository, or beside it; a test whose data is nowhere skips, saying so."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
_PLACES = [
    ROOT / "tests" / "data",
    ROOT / "examples",
    Path(os.environ.get("LORAGRAFT_TEST_DATA", ROOT.parent / "shared")),
]
_PLACES += [place / "models" for place in _PLACES]


def data(name: str) -> Path:
    """The file or folder `name` (`llama-kjv`, `golden/convert.json`, `gguf/odd-f16.gguf`)."""
    for place in _PLACES:
        if (place / name).exists():
            return place / name
    pytest.skip(f"test data {name} is not here; name its folder in LORAGRAFT_TEST_DATA")
