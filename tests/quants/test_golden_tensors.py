"""Every tensor that llama-quantize wrote in the golden runs, by type: the native core gives the same bytes, and the
NumPy reference the same as the native core on some rows of each."""

from __future__ import annotations

import hashlib
from functools import cache

import numpy as np
import pytest

import golden
from loragraft.formats.gguf.reader import GGUFFile
from loragraft.quants import native, reference
from loragraft.quants.types import BY_NAME, F16, F32
from paths import data

TYPES = list(reference.CODECS)
REFERENCE_ROWS = 3


@cache
def wanted() -> dict[str, dict[tuple[str, str, bool], str]]:
    """type -> {(golden file, tensor, with importance): sha256}; runs that agree are merged."""
    table: dict[str, dict[tuple[str, str, bool], str]] = {}
    for file in golden.FILES:
        for run in golden.runs(file):
            for name, tensor in run.result.get("tensors", {}).items():
                key = (file, name, run.imatrix and name in importance(file))
                known = table.setdefault(tensor["type"], {}).setdefault(key, tensor["sha256"])
                assert known == tensor["sha256"]
    return table


@cache
def source(file: str) -> GGUFFile:
    return GGUFFile.open(data(golden.FILES[file][1]))


@cache
def importance(file: str) -> dict[str, np.ndarray]:
    """The importance matrix's entries [cols]: mean squares of the activations."""
    path = golden.FILES[file][2]
    if path is None:
        return {}
    tensors = GGUFFile.open(data(path)).tensors
    sums = [name.removesuffix(".in_sum2") for name in tensors if name.endswith(".in_sum2")]
    return {
        name: floats(tensors[name + ".in_sum2"])[0] / floats(tensors[name + ".counts"])[0, 0] for name in sums
    }


def floats(tensor) -> np.ndarray:
    rows = tensor.rows(0, tensor.n_rows)
    assert tensor.type in (F16, F32)
    return (
        np.ascontiguousarray(rows).view(np.float16 if tensor.type is F16 else np.float32).astype(np.float32)
    )


@pytest.mark.parametrize("name", TYPES)
def test_every_golden_tensor(name: str) -> None:
    kind, jobs = BY_NAME[name], wanted().get(name, {})
    module = native if native.supports(kind) else reference
    wrong = []
    for (file, tensor_name, weighted), sha256 in jobs.items():
        x = floats(source(file).tensors[tensor_name])
        w = importance(file)[tensor_name] if weighted else None
        out = module.quantize(x, kind, w)
        if hashlib.sha256(out.tobytes()).hexdigest() != sha256:
            wrong.append((file, tensor_name, weighted))
        some = np.linspace(0, len(x) - 1, REFERENCE_ROWS).astype(int)
        assert np.array_equal(reference.quantize(x[some], kind, w), out[some]), tensor_name
    print(f"\n{name}: {len(jobs) - len(wrong)} of {len(jobs)} golden tensors")
    assert wrong == []
