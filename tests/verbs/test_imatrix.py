"""Against llama-imatrix on the same text."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import loragraft as lg
from loragraft.formats.imatrix import Imatrix
from loragraft.verbs.imatrix import imatrix
from paths import data

GOLDEN = json.loads(data("golden/imatrix.json").read_text())["models"]


def check(ours: Imatrix, theirs: dict[str, dict[str, list[float]]], tolerance: float) -> None:
    assert sorted(ours.sums) == sorted(theirs)
    for name, expected in theirs.items():
        assert ours.counts[name].tolist() == expected["counts"], name
        np.testing.assert_allclose(ours.entries[name].mean(axis=1), expected["mean"], tolerance, err_msg=name)
        np.testing.assert_allclose(ours.entries[name][:, :4], expected["first"], tolerance, err_msg=name)


@pytest.fixture(scope="module")
def text() -> str:
    return data("shakespeare-valid.txt").read_text()[:6_000]


def test_with_the_adapter_active_as_the_merged_model_sees_it(text: str, tmp_path: Path) -> None:
    ours = imatrix(
        data("llama-kjv"),
        lg.Measurement(text, context=256),
        adapters=[data("llama-kjv.shakespeare")],
        dataset="x",
    )
    check(ours, GOLDEN["llama"], 2e-3)  # merged: the weights are rounded to F16 once more
    ours.save_gguf(tmp_path / "i.gguf")
    again = Imatrix.load(tmp_path / "i.gguf")
    check(again, GOLDEN["llama"], 2e-3)
    assert (again.datasets, again.chunk_size, again.chunk_count) == (["x"], 256, ours.chunk_count)


def test_experts_count_what_was_routed_to_them(text: str) -> None:
    ours = imatrix(data("gguf/qwen3moe-8x-f16.gguf"), lg.Measurement(text, context=256))
    theirs = GOLDEN["qwen3moe"]
    assert sorted(ours.sums) == sorted(theirs)
    for name, expected in theirs.items():
        counts = np.array(expected["counts"])
        # A near tie in the router may fall the other way.
        assert np.abs(ours.counts[name] - counts).max() <= 0.005 * counts.sum(), name
        np.testing.assert_allclose(ours.entries[name].mean(axis=1), expected["mean"], 0.01, err_msg=name)


def test_output_layer_on_request(text: str) -> None:
    ours = imatrix(data("llama-kjv"), lg.Measurement(text, context=256, windows=2), process_output=True)
    assert ours.sums["output.weight"].shape == (1, 256)
    assert ours.counts["output.weight"].tolist() == [512]
