"""Rounded activations: the definition on values worked out by hand, and both backends against each other."""

from __future__ import annotations

import numpy as np
import pytest

from loragraft.archs.graphs import build_graph, tensor_facts
from loragraft.backends.activations import round_codes, round_nvfp4, round_q8
from loragraft.backends.cpu.program import NativeBackend
from loragraft.backends.program import Backend, Options
from loragraft.backends.reference import ReferenceBackend
from loragraft.graph.lora import attach
from loragraft.opening import load_adapter, open_model
from paths import arrays, data
from running import logits_of
from tolerances import nmse


def test_eight_bits_of_the_largest_in_each_32() -> None:
    x = np.zeros((1, 40), np.float32)
    x[0, :4] = [127, -63.4, 2.5, 0.4]  # scale 1: nearest whole number, halves to even
    x[0, 32:34] = [254, 3]  # a block of its own, scale 2
    wanted = x.copy()
    wanted[0, :4] = [127, -63, 2, 0]
    wanted[0, 32:34] = [254, 4]
    assert np.array_equal(round_q8(x), wanted)


def test_nvfp4_of_the_largest_in_each_16() -> None:
    x = np.zeros((1, 20), np.float32)
    x[0, :6] = [6, -5, 2.5, 0.25, 1.75, 0.3]  # block scale 1: values of E2M1, halves to the even code
    x[0, 16:19] = [60, 21, -9]  # block scale 10
    wanted = x.copy()
    wanted[0, :6] = [6, -4, 2, 0, 2, 0.5]
    wanted[0, 16:19] = [60, 20, -10]
    assert np.array_equal(round_nvfp4(x, np.ones(1, np.float32)), wanted)


def test_nvfp4_scale_is_rounded_to_e4m3_and_saturates() -> None:
    x = np.full((1, 16), 6.6, np.float32)  # scale 1.1 becomes 1.125, of which 6 is the most
    assert np.allclose(round_nvfp4(x, np.ones(1, np.float32)), 6 * 1.125)
    tiny = np.full(1, 1e-4, np.float32)  # calibrated on much smaller values: the scale stops at 448
    assert np.allclose(round_nvfp4(x, tiny), 6 * 448 * 1e-4)
    # Without calibration a row is scaled by its own largest value, which is then exact but for rounding.
    assert np.allclose(round_nvfp4(x, None), x, rtol=1e-6)
    assert np.array_equal(round_nvfp4(np.zeros((2, 16), np.float32), None), np.zeros((2, 16)))


def test_factors_in_eight_bits() -> None:
    """Blocks of 32 along a row of A, of 16 along a column of B; a rank's unit brings small numbers into reach of
    the half float that scales them."""
    a = np.zeros((2, 40), np.float32)
    a[0, :4] = [127, -63.4, 2.5, 0.4]
    a[0, 32:34] = [254, 3]
    a[1, :3] = [12.7e-20, -0.2e-20, 0.16e-20]
    wanted = a.copy()
    wanted[0, :4], wanted[0, 32:34] = [127, -63, 2, 0], [254, 4]
    found = round_codes(a, -2)
    assert np.array_equal(found[0], wanted[0])
    assert np.allclose(found[1, :3], [12.7e-20, -0.2e-20, 0.2e-20], rtol=1e-3, atol=0)
    b = np.zeros((20, 1), np.float32)
    b[:3, 0], b[16:18, 0] = [127, 0.4, 1.5], [12.7, 0.16]
    found = round_codes(b, -1)[:, 0]
    assert np.array_equal(found[:3], [127, 0, 2])
    assert np.allclose(found[16:18], [12.7, 0.2], rtol=1e-3)
    assert np.isnan(round_codes(np.where(a == 3, np.inf, a), -2)[0, 32:]).all()


def test_the_error_of_factors_in_eight_bits_is_bounded() -> None:
    rng = np.random.default_rng(3)
    for matrix in (
        rng.standard_normal((16, 640)),
        rng.standard_t(1.1, (16, 640)),
        rng.uniform(-1, 1, (16, 640)),
    ):
        m = matrix.astype(np.float32)
        assert 1e-6 < nmse(round_codes(m, -2), m) < 1.7e-4
        assert 1e-6 < nmse(round_codes(m.T, -1), m.T) < 8.5e-5
        assert np.allclose(round_codes(round_codes(m, -2), -2), round_codes(m, -2), rtol=1e-6, atol=0)


@pytest.mark.parametrize("activations", ["q8", "nvfp4"])
@pytest.mark.parametrize(
    ("model", "adapter"),
    [("llama-kjv-nvfp4", "llama-kjv.shakespeare"), ("qwen3moe-8x-nvfp4", "qwen3moe-8x.experts")],
)
def test_both_backends_round_alike(model: str, adapter: str, activations: str) -> None:
    source = open_model(data(model))
    graph, extra = attach(
        build_graph(source.metadata, tensor_facts(source.tensors)),
        [(load_adapter(data(adapter), source), 1.0)],
        source.tensors,
    )
    ids = arrays("golden/hf-logits.npz")["ids"].astype(np.int32)[:1]
    weights = {**source.tensors, **extra}

    def logits(backend: Backend, how: str) -> np.ndarray:
        options = Options(activations=how, keys_values="f32")  # type: ignore[arg-type]
        return logits_of(backend, graph, weights, ids, options)

    found = nmse(logits(NativeBackend(), activations), logits(ReferenceBackend(), activations))
    cost = nmse(logits(ReferenceBackend(), activations), logits(ReferenceBackend(), "f32"))
    # A value that lies on the edge between two codes may fall either way; all others agree.
    assert found < cost / 20
