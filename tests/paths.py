"""Where the tests' data lies: in the repository, or beside it; a test whose data is nowhere skips, saying so."""

from __future__ import annotations

import os
import tempfile
from functools import cache
from pathlib import Path
from unittest import mock

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
_PLACES = [
    ROOT / "tests" / "data",
    ROOT / "examples",
    Path(os.environ.get("LORAGRAFT_TEST_DATA", ROOT.parent / "shared")),
]
_PLACES += [place / "models" for place in _PLACES]

#: GGUF files too large to keep in the repository, made from (base, adapter) that are, under llama.cpp's name for them.
_MADE = {"gguf/llama-kjv.merged-f16.gguf": ("llama-kjv", "llama-kjv.shakespeare", "Base_Hf_F16")}


def data(name: str, *other_names: str) -> Path:
    """The file or folder `name` (`llama-kjv`, `golden/convert.json`, `gguf/odd-f16.gguf`), or under another name."""
    for place in _PLACES:
        for one in (name, *other_names):
            if (place / one).exists():
                return place / one
    if name in _MADE:
        return _made(name)
    pytest.skip(f"test data {name} is not here; name its folder in LORAGRAFT_TEST_DATA")


@cache
def arrays(name: str) -> dict[str, np.ndarray]:
    """All arrays of the .npz file `name`."""
    with np.load(data(name)) as file:
        return dict(file)


@cache
def _made(name: str) -> Path:
    """Make the file `name` by our own conversion and merge, which give llama.cpp's bytes."""
    from loragraft.formats.gguf.values import Value
    from loragraft.opening import open_model
    from loragraft.verbs.merge import merge

    base, adapter, title = _MADE[name]
    model = open_model(data(base))
    model.metadata["general.name"] = Value.string(title)
    model.tensors = dict(sorted(model.tensors.items()))  # llama-export-lora's order
    path = Path(_folder().name) / Path(name).name
    # As llama.cpp's merger leaves it, which says nothing of the adapter.
    with mock.patch("loragraft.verbs.merge.receipts_metadata", return_value={}):
        merge(model, [(data(adapter), 1.0)], path)
    return path


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="loragraft-tests-")
