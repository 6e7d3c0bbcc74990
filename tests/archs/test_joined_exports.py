"""Exports of matrices that GGUF has in several tensors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import loragraft as lg
from archs.test_hf_configs import write
from archs.test_hf_peft import write_adapter
from hf_configs import records, weights
from loragraft.formats.safetensors import SafetensorsFile
from loragraft.formats.views import values_of
from loragraft.huggingface.tensor_names import TensorNames
from loragraft.opening import open_model
from loragraft.streaming.checkpoint.heads import RowPart, matrix_of_parts


@pytest.mark.parametrize(
    ("case", "name"),
    [
        ("qwen3_next", "model.layers.0.linear_attn.in_proj_qkvz.weight"),
        ("granitehybrid-dense", "model.layers.1.shared_mlp.input_linear.weight"),
    ],
)
def test_the_matrix_is_the_checkpoints(tmp_path: Path, case: str, name: str) -> None:
    model = open_model(write(tmp_path / "m", case))
    expected = weights(records()[case]["shapes"], records()[case]["config"]["model_type"])[name]
    parts = [
        RowPart(model.tensors[place.name], order)
        for place in TensorNames(model.metadata).places(name)
        if (order := place.order(len(expected))) is not None
    ]
    assert len(parts) == 2
    matrix = matrix_of_parts(name, parts)
    assert matrix.shape == expected.shape
    np.testing.assert_array_equal(values_of(matrix).reshape(expected.shape), expected)
    for start, stop in ((0, 1), (3, 17), (17, len(expected)), (5, 5)):
        rows = matrix.rows(start, stop).view(np.float32)
        np.testing.assert_array_equal(rows.reshape(-1, expected.shape[1]), expected[start:stop])


def test_an_adapter_goes_with_it(tmp_path: Path) -> None:
    """As into the GGUF that is then exported."""
    base, adapter = write(tmp_path / "m", "qwen3_next"), write_adapter(tmp_path / "a", "qwen3_next")
    lg.merge(base, adapter, tmp_path / "merged.gguf", type="F32")
    lg.export(tmp_path / "merged.gguf", tmp_path / "two")
    lg.export(base, tmp_path / "one", adapters=adapter)
    found, expected = (
        SafetensorsFile.open(tmp_path / name / "model.safetensors").tensors for name in ("one", "two")
    )
    stem = "model.layers.0.linear_attn.in_proj_qkvz"
    assert [name for name in found if name.startswith(stem)]
    for name in found:
        if name.startswith(stem):
            np.testing.assert_array_equal(found[name].data(), expected[name].data(), name)
