"""A walk through a slice is a run of it, and shows what every product is given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from loragraft.arrays import Floats
from loragraft.backends.batch import Piece
from loragraft.errors import LoragraftError
from loragraft.streaming import moments, walk
from loragraft.streaming.layers import Layers
from loragraft.streaming.moments import input_moments
from loragraft.streaming.walk import Product, Walk
from small_models import LAYERS
from streaming.test_calibrated import NATIVE, REFERENCE, plan_of, source, text

WINDOWS = text(7, 9)


def layers_of(tmp_path: Path, name: str) -> Layers:
    return Layers(plan_of(source(tmp_path, name)), NATIVE, 2)


@pytest.mark.parametrize("name", list(LAYERS))
def test_it_comes_out_as_a_run_does(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(walk, "BATCH", 18)  # the last batch is a window shorter
    layers, hidden = layers_of(tmp_path, name), None
    for layer in range(layers.count):
        part = layers.part(layer)
        weights = layers.weights(part)
        expected = layers.run(part, weights, WINDOWS, hidden)
        found = Walk(part, weights, WINDOWS, hidden, 2).output()
        assert np.allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
        hidden = expected


def products_of(layers: Layers, name: str) -> dict[str, Product]:
    part = layers.part(0)
    steps, found = Walk(part, layers.weights(part), WINDOWS, None, 2), {}
    while (product := steps.product()) is not None:
        found |= dict.fromkeys(product.names, product)
    return found


@pytest.mark.parametrize("name", ["llama", "llama/experts", "starcoder2"])
def test_products_are_shown_what_a_program_shows(name: str, tmp_path: Path) -> None:
    layers = layers_of(tmp_path, name)
    part = layers.part(0)
    seen: dict[str, list[tuple[Floats, npt.NDArray[np.int32] | None]]] = {}
    program = REFERENCE.prepare(part, layers.weights(part))

    def observe(names: tuple[str, ...], x: Floats, ids: npt.NDArray[np.int32] | None) -> None:
        for weight in names:
            seen.setdefault(weight, []).append((x.copy(), None if ids is None else ids.copy()))

    program.observer = observe
    program.run([Piece(program.open_sequence(), window) for window in WINDOWS])
    products = products_of(layers, name)
    assert products.keys() == seen.keys()
    for weight, rows in seen.items():
        product, x = products[weight], np.concatenate([x for x, _ in rows])
        assert np.allclose(np.concatenate(product.inputs), x, rtol=1e-4, atol=1e-5), weight
        ids = [own for _, own in rows if own is not None]
        if product.ids is None:
            assert not ids
        else:
            assert np.array_equal(np.concatenate(product.ids), np.concatenate(ids))


def test_weights_that_change_before_their_product_count(tmp_path: Path) -> None:
    layers = layers_of(tmp_path, "llama")
    part = layers.part(0)
    weights = layers.weights(part)
    steps = Walk(part, weights, WINDOWS, None, 2)
    inputs = {}
    while (product := steps.product()) is not None:
        inputs[product.names[0]] = np.concatenate(product.inputs)
        for name in product.names:
            weights[name] = weights[name] * np.float32(1.5)
    scaled = layers.run(part, weights, WINDOWS, None)
    assert np.allclose(steps.output(), scaled, rtol=1e-4, atol=1e-4 * np.abs(scaled).max())
    untouched = products_of(layers, "llama")
    same = {n: np.allclose(x, np.concatenate(untouched[n].inputs), rtol=1e-3) for n, x in inputs.items()}
    assert same == {
        "blk.0.attn_q.weight": True,
        "blk.0.attn_output.weight": False,
        "blk.0.ffn_gate.weight": False,
        "blk.0.ffn_down.weight": False,
    }


def test_moments_are_sums_over_weighted_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """In blocks of columns that do not divide them, and by expert."""
    monkeypatch.setattr(moments, "BLOCK", 5)
    rng = np.random.default_rng(0)
    x = [rng.standard_normal((rows, 12), np.float32) for rows in (7, 3)]
    counts = {"a": rng.random(10, np.float32), "b": rng.random(10, np.float32)}
    whole, mean = np.concatenate(x).astype(np.float64), (counts["a"] + counts["b"]) / 2
    found = input_moments(Product(("a", "b", "c"), x, None), counts, threads=2)
    assert np.allclose(found.sums[0], (whole * mean[:, None]).T @ whole, rtol=1e-5, atol=1e-5)
    assert np.array_equal(found.sums[0], found.sums[0].T)
    assert found.counts.tolist() == [10]

    ids = [rng.permuted(np.tile(np.arange(3, dtype=np.int32), (len(own), 1)), axis=1)[:, :2] for own in x]
    weights = {"e": rng.random((10, 2), np.float32)}
    found = input_moments(Product(("e",), x, ids), weights, 3)
    for expert in range(3):
        share = (weights["e"] * (np.concatenate(ids) == expert)).sum(axis=1)
        assert np.allclose(found.sums[expert], (whole * share[:, None]).T @ whole, rtol=1e-5, atol=1e-5)
    assert found.counts.sum() == 20


def test_inputs_that_are_not_finite_are_refused() -> None:
    x = np.ones((4, 3), np.float32)
    x[2, 1] = np.inf
    with pytest.raises(LoragraftError, match="not finite"):
        input_moments(Product(("w",), [x], None), {})
