"""Small GGUF files for tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from loragraft.formats.gguf.values import Value
from loragraft.formats.gguf.writer import GGUFWriter, TensorSpec
from loragraft.quants.types import F32


def write_gguf(path: Path, metadata: Mapping[str, Value], arrays: Mapping[str, np.ndarray]) -> Path:
    """A file with `arrays` as F32 tensors."""
    specs = [TensorSpec(name, array.shape, F32) for name, array in arrays.items()]
    with GGUFWriter(path, metadata, specs) as writer:
        for name, array in arrays.items():
            writer.write(name, 0, np.ascontiguousarray(array, dtype="<f4"))
    return path
