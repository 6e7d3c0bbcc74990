"""Adapters taken out of the models that they were merged into."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file

import loragraft as lg
from loragraft.adapters.receipt import NAMES, receipts_in
from loragraft.cli import app
from loragraft.errors import AdapterError
from loragraft.formats.views import float_rows, widened
from loragraft.opening import open_model
from loragraft.quants.types import F32
from paths import data
from peft_golden import adapter_folder, base_folder

BASE, ADAPTER = data("llama-kjv"), data("llama-kjv.shakespeare")


def values(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of the model at `path`, in float32."""
    found = {}
    for name, tensor in open_model(path).tensors.items():
        wide = widened(tensor)
        found[name] = float_rows(wide.rows(0, wide.n_rows), F32).reshape(tensor.shape)
    return found


def other_adapter(folder: Path) -> Path:
    shutil.copytree(ADAPTER, folder)
    weights = load_file(folder / "adapter_model.safetensors")
    save_file(
        {name: array[::-1].copy() for name, array in weights.items()}, folder / "adapter_model.safetensors"
    )
    return folder


@pytest.mark.parametrize(("kind", "places"), [("F32", 2**-22), ("F16", 2**-10), ("BF16", 2**-7)])
def test_what_is_left_is_the_base(kind: str, places: float, tmp_path: Path) -> None:
    """But for the rounding of the merged weight and of the difference, each half a place of the larger of them."""
    lg.merge(BASE, [(ADAPTER, 0.5)], tmp_path / "m.gguf", type=kind)
    lg.unmerge(tmp_path / "m.gguf", ADAPTER, tmp_path / "b.gguf")
    assert open_model(tmp_path / "b.gguf").tensors["blk.0.attn_q.weight"].type.name == kind
    merged, expected, found = values(tmp_path / "m.gguf"), values(BASE), values(tmp_path / "b.gguf")
    for name, array in expected.items():
        bound = places * np.maximum(np.abs(merged[name]), np.abs(array)) + 1e-7
        assert (np.abs(found[name] - array) <= bound).all(), name
        if "blk" in name and "norm" not in name:
            assert not np.array_equal(merged[name], array), name
    assert NAMES not in open_model(tmp_path / "b.gguf").metadata


def test_one_of_two(tmp_path: Path) -> None:
    """The strength is what the file says, and the other adapter stays, in the weights and in what the file says."""
    other = other_adapter(tmp_path / "other")
    lg.merge(BASE, [(ADAPTER, 0.5), (other, -0.25)], tmp_path / "m.gguf", type="F32")
    lg.merge(BASE, [(other, -0.25)], tmp_path / "e.gguf", type="F32")
    lg.unmerge(tmp_path / "m.gguf", [ADAPTER], tmp_path / "b.gguf")
    expected, found = values(tmp_path / "e.gguf"), values(tmp_path / "b.gguf")
    for name, array in expected.items():
        assert np.allclose(found[name], array, rtol=0, atol=1e-6), name
    left = receipts_in(open_model(tmp_path / "b.gguf").metadata)
    assert [(name, scale) for name, scale, _, _ in left] == [("other", -0.25)]


def test_another_adapter_than_the_one_in_it(tmp_path: Path) -> None:
    lg.merge(BASE, ADAPTER, tmp_path / "m.gguf", type="F32")
    other = other_adapter(tmp_path / "other")
    with pytest.raises(
        AdapterError, match=r"other: was not merged into m\.gguf.*llama-kjv\.shakespeare at 1"
    ):
        lg.unmerge(tmp_path / "m.gguf", other, tmp_path / "b.gguf")
    assert not (tmp_path / "b.gguf").exists()


def test_a_model_that_does_not_say(tmp_path: Path) -> None:
    """What another program merged: the adapter is believed to be in it, at the strength that is given."""
    merged = data("gguf/llama-kjv.merged-f16.gguf")
    source = tmp_path / "m.gguf"
    lg.quantize(merged, source, "COPY", options=lg.QuantizeOptions(override_kv={}))
    said = receipts_in(open_model(source).metadata)
    result = CliRunner().invoke(
        app, ["unmerge", str(source), "--lora", f"{ADAPTER}=1", "-o", str(tmp_path / "b.gguf")]
    )
    assert result.exit_code == 0, result.output
    assert ("does not say what was merged into it" in result.output) == (not said)
    expected, found = values(BASE), values(tmp_path / "b.gguf")
    for name, array in expected.items():
        assert np.allclose(found[name], array, rtol=0, atol=2e-3), name


@pytest.mark.parametrize(
    ("case", "what"),
    [
        ("llama+dora", "DoRA's magnitudes"),
        ("llama+saved", "whole tensors"),
        ("llama+ia3", "what multiplies weights"),
    ],
)
def test_what_replaced_something_stays(case: str, what: str, tmp_path: Path) -> None:
    base, adapter = base_folder(case, tmp_path / "base"), adapter_folder(case, tmp_path / "adapter")
    lg.merge(base, adapter, tmp_path / "m.gguf", type="F32")
    with pytest.raises(AdapterError, match=f"holds {what}, so it cannot be taken out"):
        lg.unmerge(tmp_path / "m.gguf", adapter, tmp_path / "b.gguf")
