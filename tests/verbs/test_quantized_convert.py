"""Folders of GPTQ and compressed-tensors, converted, are llama.cpp's conversions of them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

import loragraft as lg
from loragraft.formats.gguf.model import open_gguf
from paths import data
from quantized_folders import CASES, MODULES, write_quantized

GOLDEN = json.loads(data("golden/quantized-convert.json").read_text())


@pytest.mark.parametrize("case", CASES)
def test_the_tensors_are_the_converters(tmp_path: Path, case: str) -> None:
    """`make_quantized_convert.py` recorded them: names, order, shapes, types and bytes."""
    folder = write_quantized(tmp_path / "m", case)
    report = lg.convert(folder, tmp_path / "m.gguf", type="F16", dequantize=True)
    assert any(f"and {len(MODULES) - 1} more: dequantized" in note for note in report.notes)
    found = [
        [
            name,
            list(tensor.shape),
            tensor.type.name,
            hashlib.sha256(tensor.rows(0, tensor.n_rows).tobytes()).hexdigest()[:16],
        ]
        for name, tensor in open_gguf(tmp_path / "m.gguf").tensors.items()
    ]
    assert found == GOLDEN[case]


def test_no_two_are_the_same() -> None:
    changed = {json.dumps(tensors) for tensors in GOLDEN.values()}
    assert len(changed) == len(CASES)
