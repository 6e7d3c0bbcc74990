"""Gradients layer by layer are those of the whole model at once, and their labels come as the model predicts them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gguf_files import write_gguf
from loragraft.arrays import Floats
from loragraft.backends import gradients
from loragraft.backends.gradients import Tape
from loragraft.formats.gguf.model import open_gguf
from loragraft.graph.ops import Op
from loragraft.streaming import output_gradients
from loragraft.streaming.calibration import Calibration
from loragraft.streaming.layers import Layers
from loragraft.streaming.output_gradients import Gradients, draw
from small_models import VOCAB, small_model
from streaming.test_calibrated import NATIVE, nearest, plan_of, source, text, written

WINDOWS, LENGTH = 6, 9


@pytest.mark.parametrize("name", ["llama", "llama/experts", "starcoder2"])
def test_layer_by_layer_is_all_at_once(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model(name, np.random.default_rng(2), layers=3)
    opened = open_gguf(write_gguf(tmp_path / "in.gguf", model.metadata, model.arrays))
    layers = Layers(plan_of(opened), NATIVE, 2)
    graph, rng = model.graph(), np.random.default_rng(4)
    windows = rng.integers(0, VOCAB, (WINDOWS, LENGTH)).astype(np.int32)
    labels = rng.integers(0, VOCAB, (WINDOWS, LENGTH))
    monkeypatch.setattr(output_gradients, "draw", lambda chances, window: labels[window])
    monkeypatch.setattr(output_gradients, "BATCH", 2 * LENGTH)
    monkeypatch.setattr(output_gradients, "MOST_OUTPUTS", 40)
    monkeypatch.setattr(output_gradients, "MIXED", 2)

    tape = Tape(graph, model.arrays, WINDOWS, LENGTH)
    logits = tape.forward(windows, None)
    chances = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    chances[np.arange(len(chances)), labels.reshape(-1)] -= 1
    expected: dict[str, Floats] = {}
    mixed: dict[str, Floats] = {}

    def attended(weight: str, x: Floats, g: Floats, weights: Floats) -> None:
        rows = (weights @ x[:, None]) * np.sqrt(np.square(g).sum(axis=-1))[..., None]
        rows = rows[:, :, 1::2].reshape(-1, x.shape[-1])
        mixed[weight] = rows.T @ rows

    tape.backward(chances, lambda weight, x, g, ids: expected.update({weight: g}), attended)
    with Gradients(layers, windows, tmp_path) as found:
        found.measure()
        assert [path.name for path in tmp_path.iterdir()] == ["in.gguf"]  # the other file has no name
        for weight, g in expected.items():
            own = found.of(weight)
            assert own is not None
            squares = np.square(g, dtype=np.float64).sum(axis=-1)
            assert np.allclose(own.squares, squares / squares.mean(), rtol=2e-3, atol=1e-5), weight
            if "_exps" in weight or weight == "output.weight":
                assert own.moments == ()
            else:
                size = np.abs(g.T @ g).max()
                assert len(own.moments) == -(-g.shape[-1] // 40)
                spans = output_gradients.groups(g.shape[-1])
                for group, span in zip(own.moments, spans, strict=True):
                    expected_group = g[:, span].T @ g[:, span]
                    assert np.allclose(group, expected_group, rtol=1e-3, atol=1e-4 * size), weight
        assert found.of("blk.0.attn_norm.weight") is None
        assert list(mixed) == [f"blk.{layer}.attn_v.weight" for layer in (2, 1, 0)]
        for weight, total in mixed.items():
            own_mixed = found.mixed(weight)
            assert own_mixed is not None
            assert np.allclose(own_mixed, total, rtol=2e-3, atol=1e-4 * np.abs(total).max()), weight
        assert found.mixed("blk.0.attn_q.weight") is None


def test_labels_come_as_often_as_they_are_likely() -> None:
    chances = np.array([[0.5, 0.0, 0.3, 0.2], [0.0, 0.0, 0.0, 1.0]], np.float32)
    drawn = np.stack([draw(chances, seed) for seed in range(4000)])
    for row, column in enumerate(drawn.T):
        shares = np.bincount(column, minlength=4) / len(column)
        assert np.allclose(shares, chances[row], atol=0.03)
        assert shares[1] == 0


def test_an_op_without_a_backward_rule_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All tokens count alike then, and the rest is as it was."""
    monkeypatch.delitem(gradients._BACKWARD, Op.SILU)
    model = source(tmp_path, "llama")
    report = written(model, tmp_path / "out.gguf", text())
    assert report.notes() == ["all tokens count alike: gradients do not pass the op silu of llama"]
    plain = written(model, tmp_path / "plain.gguf", text(), calibration=Calibration(text(), gradients=False))
    assert plain.notes() == []
    assert (tmp_path / "out.gguf").read_bytes() == (tmp_path / "plain.gguf").read_bytes()
    monkeypatch.undo()
    written(model, tmp_path / "weighted.gguf", text())
    nearest(model, tmp_path / "nearest.gguf")
    assert (tmp_path / "weighted.gguf").read_bytes() != (tmp_path / "plain.gguf").read_bytes()


def test_groups_of_outputs_are_rounded_each_by_its_own_moments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model whose feed-forward is wider than a group: nearer than nearest rounding all the same."""
    monkeypatch.setattr(output_gradients, "MOST_OUTPUTS", 40)
    assert [(s.start, s.stop) for s in output_gradients.groups(64)] == [(0, 32), (32, 64)]
    model = source(tmp_path, "llama")
    how = Calibration(text(), held_out={"other": text(4, seed=7)})
    report = written(model, tmp_path / "out.gguf", text(), calibration=how)
    (loss,) = report.held_out
    assert loss.kl < 0.6 * loss.nearest
    assert all(cost.cost < cost.nearest for cost in report.costs)
