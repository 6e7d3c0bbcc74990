"""The native delta arithmetic equals the NumPy definition, bit for bit, on every instruction set of this machine."""

from __future__ import annotations

import numpy as np
import pytest

from loragraft import _native
from loragraft.adapters.delta import Delta, add_deltas
from loragraft.quants import native, reference
from loragraft.quants.types import BY_NAME, F16, F32


def floats(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Numbers of very different sizes, so that another order of additions would show."""
    return (rng.standard_normal(shape) * np.exp2(rng.integers(-20, 20, shape))).astype(np.float32)


def stream(
    x: np.ndarray, deltas: list[Delta], kind: str, isa: str, *, through_f16: bool = False
) -> np.ndarray:
    out = np.empty((len(x), BY_NAME[kind].row_bytes(x.shape[1])), np.uint8)
    arguments = [(d.a, d.b, d.scale) for d in deltas]
    kinds = (F32.id, out, BY_NAME[kind].id)
    fault = _native.stream_rows(x.view(np.uint8), *kinds, *x.shape, arguments, through_f16, None, isa=isa)
    assert fault == (0, 0, 0)
    return out


@pytest.mark.parametrize("isa", native.isas())
@pytest.mark.parametrize(("rows", "columns", "rank"), [(1, 1, 1), (5, 67, 3), (9, 256, 8), (70, 1100, 16)])
def test_equals_the_numpy_definition(isa: str, rows: int, columns: int, rank: int) -> None:
    rng = np.random.default_rng(rows)
    x = floats(rng, rows, columns)
    deltas = [
        Delta(floats(rng, r, columns), floats(rng, rows, r), s) for r, s in ((rank, 2.0), (rank + 1, -0.3))
    ]
    merged = add_deltas(x, deltas)
    assert not np.array_equal(merged, x)
    assert stream(x, deltas, "F32", isa).tobytes() == merged.tobytes()


@pytest.mark.parametrize("isa", native.isas())
def test_rounds_through_f16(isa: str) -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((40, 1024)).astype(np.float32)
    a, b = (rng.standard_normal(shape).astype(np.float32) for shape in ((4, 1024), (40, 4)))
    delta = Delta(a, b, 0.5)
    halves = reference.quantize(add_deltas(x, [delta]), F16)
    expected = reference.quantize(reference.dequantize(halves, F16), BY_NAME["Q8_0"])
    assert np.array_equal(stream(x, [delta], "Q8_0", isa, through_f16=True), expected)
    assert not np.array_equal(stream(x, [delta], "Q8_0", isa), expected)


def test_a_stack_of_matrices() -> None:
    rng = np.random.default_rng(2)
    x, a, b = floats(rng, 3, 5, 7), floats(rng, 3, 2, 7), floats(rng, 3, 5, 2)
    merged = add_deltas(x, [Delta(a, b, 0.5)])
    for e in range(3):
        assert np.array_equal(merged[e], add_deltas(x[e], [Delta(a[e], b[e], 0.5)]))
        one = Delta(a, b, 0.5).rows(e, slice(1, 4))
        assert np.array_equal(one.a, a[e])
        assert np.array_equal(one.b, b[e, 1:4])


def double(weights: np.ndarray, alone: np.ndarray, delta: Delta) -> np.ndarray:
    """What DoRA makes of `weights`, the norm being that of `alone` with the delta, in float64."""
    added = delta.scale * delta.b.astype(np.float64) @ delta.a.astype(np.float64)
    tuned = (delta.magnitude / np.linalg.norm(alone + added, axis=-1))[..., None] * (weights + added)
    return weights + delta.strength * (tuned - weights)


@pytest.mark.parametrize("shape", [(5, 67), (3, 5, 7)])
def test_dora_in_turn_with_others(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(4)
    w = rng.standard_normal(shape, np.float32)

    def delta(rank: int, strength: float | None) -> Delta:
        a = rng.standard_normal((*shape[:-2], rank, shape[-1]), np.float32)
        b = rng.standard_normal((*shape[:-1], rank), np.float32)
        if strength is None:
            return Delta(a, b, 0.5)
        return Delta(a, b, 0.5, rng.uniform(1, 9, shape[:-1]).astype(np.float32), strength)

    first, plain, second = delta(2, 1.0), delta(3, None), delta(4, 0.3)
    expected = double(w, w, first)
    expected = expected + 0.5 * plain.b.astype(np.float64) @ plain.a
    expected = double(expected, w, second)
    np.testing.assert_allclose(add_deltas(w, [first, plain, second]), expected, rtol=1e-5, atol=1e-5)
    lengths = np.linalg.norm(add_deltas(w, [first]), axis=-1)
    np.testing.assert_allclose(lengths, first.magnitude, rtol=1e-6)


def test_a_row_without_a_direction_stays() -> None:
    a, b = np.ones((1, 4), np.float32), np.zeros((2, 1), np.float32)
    merged = add_deltas(np.zeros((2, 4), np.float32), [Delta(a, b, 1.0, np.ones(2, np.float32))])
    assert np.array_equal(merged, np.zeros((2, 4)))


@pytest.mark.parametrize("isa", native.isas())
@pytest.mark.parametrize(
    ("value", "kind", "through_f16", "fault"),
    [
        (np.nan, "F32", False, (1, 3, 40)),
        (-np.inf, "Q8_0", False, (1, 3, 40)),
        (1e5, "F16", False, (2, 3, 40)),
        (1e5, "Q8_0", True, (2, 3, 40)),
        (3e38, "Q8_0", False, (3, 3, 32)),
        (1e30, "BF16", False, (0, 0, 0)),
    ],
)
def test_faults_are_found_where_they_are(
    isa: str, value: float, kind: str, through_f16: bool, fault: tuple[int, int, int]
) -> None:
    x = np.ones((6, 64), np.float32)
    x[3, 40] = value
    out = np.empty((6, BY_NAME[kind].row_bytes(64)), np.uint8)
    kinds = (F32.id, out, BY_NAME[kind].id)
    assert _native.stream_rows(x.view(np.uint8), *kinds, 6, 64, [], through_f16, None, isa=isa) == fault


def test_wrong_sizes_are_refused() -> None:
    x = np.ones((2, 64), np.float32)
    out = np.empty((2, 64), np.float32).view(np.uint8)
    wrong = [
        (x.view(np.uint8)[:1], F32.id, out, F32.id, 2, 64, [], False, None),
        (x.view(np.uint8), F32.id, out[:, :8].copy(), F32.id, 2, 64, [], False, None),
        (x.view(np.uint8), 99, out, F32.id, 2, 64, [], False, None),
        (x.view(np.uint8), F32.id, out, F32.id, 2, -64, [], False, None),
        (x.view(np.uint8), F32.id, out, F32.id, 2, 64, [(x, x, 1.0)], False, None),
        (x.view(np.uint8), F32.id, out, F32.id, 2, 64, [], False, np.ones(63, np.float32)),
    ]
    for arguments in wrong:
        with pytest.raises(ValueError, match=r"."):
            _native.stream_rows(*arguments)
