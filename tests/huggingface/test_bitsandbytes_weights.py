"""Checkpoints that bitsandbytes quantized: the floats are those that it computes with, to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import loragraft as lg
from hf_configs import records, weights, write_tokenizer
from intake_table import shows
from loragraft.formats.views import float_rows
from loragraft.opening import open_model
from paths import arrays

CASES = ("nf4-nested", "nf4", "fp4", "int8")
TYPES = {"nf4-nested": "BF16", "nf4": "F16", "fp4": "F32", "int8": "F32"}
PROJECTION = "model.layers.0.self_attn.q_proj"


def folder(path: Path, case: str, **other: Any) -> Path:
    """A small Phi one of whose weights is the recorded one; `other`: what replaces parts of it (None: nothing)."""
    golden = {
        key.partition(":")[2]: array
        for key, array in arrays("golden/bitsandbytes.npz").items()
        if key.startswith(f"{case}:") and not key.endswith(":floats")
    }
    record = records()["phi-quarter"]
    config = dict(record["config"])
    tensors: dict[str, Any] = dict(weights(record["shapes"]))
    del tensors[f"{PROJECTION}.weight"]
    for name, part in golden.items():
        tensors[f"{PROJECTION}.{name}"] = other.get(name.rpartition(".")[2], part)
    path.mkdir()
    save_file(
        {name: array for name, array in tensors.items() if array is not None}, path / "model.safetensors"
    )
    config["quantization_config"] = {"quant_method": "bitsandbytes"}
    (path / "config.json").write_text(json.dumps(config))
    write_tokenizer(path)
    return path


@pytest.mark.parametrize("case", CASES)
def test_the_floats_are_those_of_bitsandbytes(tmp_path: Path, case: str) -> None:
    model = open_model(folder(tmp_path / "m", case), dequantize=True)
    weight = model.tensors["blk.0.attn_q.weight"]
    assert weight.type.name == TYPES[case]
    expected = arrays("golden/bitsandbytes.npz")[f"{case}:floats"]
    for rows in (range(64), range(5, 6), range(11, 64)):
        found = float_rows(weight.rows(rows.start, rows.stop), weight.type)
        np.testing.assert_array_equal(found, expected[rows.start : rows.stop])


@shows("04", "bitsandbytes' NF4, FP4 and int8", "named; read to the bit with `--dequantize`")
def test_it_becomes_floats_only_on_request(tmp_path: Path) -> None:
    with pytest.raises(
        lg.LoragraftError,
        match=r"quantized by bitsandbytes to 4 bits, .*: found .* loragraft convert .* --dequantize -o",
    ):
        lg.convert(folder(tmp_path / "m", "nf4"), tmp_path / "m.gguf")
    lg.convert(tmp_path / "m", tmp_path / "m.gguf", type="F32", dequantize=True)
    converted, ids = lg.load(tmp_path / "m.gguf", threads=1), np.arange(2, 30)
    runs = lg.load(tmp_path / "m", threads=1)
    assert any("bitsandbytes quantized it to 4 bits" in note for note in runs.notes)
    np.testing.assert_array_equal(runs.logits(ids), converted.logits(ids))


@pytest.mark.parametrize(
    ("case", "other", "message"),
    [
        ("nf4", {"quant_map": np.zeros(15, np.float32)}, "quant_map of .* does not fit: found F32"),
        ("nf4", {"absmax": np.zeros(3, np.float32)}, "absmax of .* does not fit: found F32"),
        ("nf4-nested", {"nested_absmax": None}, "nested_absmax of .* does not fit: found none"),
        ("nf4", {"bitsandbytes__nf4": None}, "lacks its quant_state"),
        ("nf4", {"bitsandbytes__nf4": np.frombuffer(b'{"shape": [1, 2]}', np.uint8)}, "bad quant_state of"),
        ("int8", {"SCB": np.zeros(3, np.float32)}, "SCB of .* does not fit: found F32"),
    ],
)
@shows("04", "companions that do not fit", "refused")
def test_companions_that_do_not_fit(tmp_path: Path, case: str, other: dict[str, Any], message: str) -> None:
    with pytest.raises(lg.LoragraftError, match=message):
        open_model(folder(tmp_path / "m", case, **other), dequantize=True)
