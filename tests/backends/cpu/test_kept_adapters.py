"""How the engine keeps A and B: as half floats where that changes no number, or where the product beside them is
rounded far more; or there in 8 bits. The bits are those of the numbers kept, whichever way."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from loragraft.adapters.lora import Adapter
from loragraft.arrays import Floats
from loragraft.backends.activations import round_codes
from loragraft.backends.batch import Piece
from loragraft.backends.cpu.program import NativeBackend
from loragraft.backends.program import Backend, Program, Weights
from loragraft.backends.reference import ReferenceBackend
from loragraft.quants.types import BY_NAME
from products import engine
from quantized import quantized
from running import EXACT
from small_models import SmallModel, linears, random_adapter, small_model
from tolerances import ADAPTERS_Q8, nmse

IDS = np.array([3, 17, 39, 0, 17, 5, 21, 8], dtype=np.int32)


def model(name: str) -> SmallModel:
    return small_model(name, np.random.default_rng(2))


def adapter_of(name: str, seed: int = 1, rank: int = 3, *, dora: bool = False) -> Adapter:
    shapes = {base: shape for base, shape in linears(name).items() if base != "token_embd"}
    return random_adapter(np.random.default_rng(seed), shapes, rank, dora=dora)


def changed(adapter: Adapter, change: object) -> Adapter:
    pairs = {name: replace(pair, **change(pair)) for name, pair in adapter.pairs.items()}  # type: ignore[operator]
    return replace(adapter, pairs=pairs)


def bfloats(x: Floats) -> Floats:
    return (x.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def halves(x: Floats, axes: tuple[int, ...]) -> Floats:
    """The nearest numbers of 11 bits, in units that make the largest of each rank nearly 2^15."""
    unit = np.exp2(14 - np.floor(np.log2(np.abs(x).max(axes, keepdims=True)))).astype(np.float32)
    return np.asarray((x * unit).astype(np.float16).astype(np.float32) / unit, np.float32)


def with_rank(pair: object, a: Floats, b: Floats) -> dict[str, Floats]:
    """The pair with one more rank, whose B A is nothing."""
    return {"a": np.concatenate([pair.a, a], axis=-2), "b": np.concatenate([pair.b, b], axis=-1)}  # type: ignore[attr-defined]


def program(
    small: SmallModel, kind: str | None = None, backend: Backend | None = None, **options: Any
) -> Program:
    weights: Weights = small.arrays if kind is None else quantized(small.arrays, kind)
    return (backend or NativeBackend()).prepare(small.graph(), weights, replace(EXACT, **options))


def logits(program: Program, adapter: Adapter, strength: float = 0.7) -> Floats:
    slot, sequence = program.add_adapter(adapter), program.open_sequence()
    return program.run([Piece(sequence, IDS, ((slot, strength),), wants="all")])


@pytest.mark.parametrize("name", ["llama", "qwen3moe"])
def test_numbers_that_fit_half_floats_keep_their_bits(name: str) -> None:
    """Beside them a rank that adds nothing, but keeps A, B or both from being half floats."""
    rng, small = np.random.default_rng(3), model(name)
    plain = changed(adapter_of(name), lambda pair: {"a": bfloats(pair.a), "b": bfloats(pair.b)})

    def odd(pair: object, part: str, used: bool) -> Floats:
        shape = list(getattr(pair, part).shape)
        shape[-2 if part == "a" else -1] = 1
        return rng.standard_normal(shape, dtype=np.float32) * np.float32(used)

    ready = program(small)
    wanted = logits(ready, plain)
    assert not np.array_equal(wanted, logits(ready, plain, 0.6))
    for a, b in ((True, False), (False, True)):
        other = changed(plain, lambda pair, a=a, b=b: with_rank(pair, odd(pair, "a", a), odd(pair, "b", b)))
        assert np.array_equal(logits(ready, other), wanted)


@pytest.mark.parametrize("size", [1.0, 1e-12, 1e12])
@pytest.mark.parametrize("name", ["llama", "qwen3moe"])
def test_beside_8_bit_activations_ranks_are_rounded_to_11_bits(name: str, size: float) -> None:
    small = model(name)
    exact = changed(
        adapter_of(name),
        lambda pair: {"a": pair.a * np.float32(size), "b": pair.b / np.float32(size)},
    )
    stacked = lambda x, last: tuple(i for i in range(x.ndim) if i != x.ndim - last)  # noqa: E731
    rounded = changed(
        exact, lambda pair: {"a": halves(pair.a, stacked(pair.a, 2)), "b": halves(pair.b, stacked(pair.b, 1))}
    )
    ready, floats = program(small, "Q8_0"), program(small)
    assert np.array_equal(logits(ready, exact), logits(ready, rounded))
    assert not np.array_equal(logits(floats, exact), logits(floats, rounded))


@pytest.mark.parametrize(
    ("name", "rank", "dora"), [("llama", 8, False), ("llama", 21, True), ("qwen3moe", 16, True)]
)
def test_in_8_bits_as_the_reference_has_it(name: str, rank: int, dora: bool) -> None:
    """A and B of 8 or more ranks, A's x as the product's; DoRA's B too. What is rounded already stays as it is."""
    small, adapter = model(name), adapter_of(name, rank=rank, dora=dora)
    found = logits(program(small, "Q8_0"), adapter)
    half = logits(program(small, "Q8_0", adapter_type="f16"), adapter)
    reference = program(small, "Q8_0", ReferenceBackend(), activations="q8")
    judged = logits(reference, adapter)
    cost = nmse(found, half)
    assert 1e-6 < cost < ADAPTERS_Q8
    # A value that lies on the edge between two codes may fall either way; all others agree.
    assert nmse(found, judged) < cost / 20
    exact = [
        logits(program(small, "Q8_0", activations="f32", adapter_type=how), adapter) for how in ("q8", "f16")
    ]
    assert np.array_equal(*exact)


def test_ranks_below_eight_and_float_weights_are_not_in_8_bits() -> None:
    small = model("llama")
    for adapter, kind in ((adapter_of("llama", rank=7), "Q8_0"), (adapter_of("llama", rank=8), None)):
        by_type = [logits(program(small, kind, adapter_type=how), adapter) for how in ("auto", "f16")]
        assert np.array_equal(*by_type)


@pytest.mark.parametrize("rank", [8, 16, 21])
def test_b_in_8_bits(rank: int) -> None:
    rng = np.random.default_rng(6)
    rows, columns, n = 70, 64, 9
    w = quantized({"w.weight": np.zeros((rows, columns), np.float32)}, "Q8_0")["w.weight"]
    pool, arena = engine.ThreadPool(2), engine.Arena()
    weight = engine.Weight(w.rows(0, rows), BY_NAME["Q8_0"].id, columns)  # type: ignore[union-attr]
    weight.pack(pool, arena)
    x = rng.standard_normal((n, columns), dtype=np.float32)
    b = rng.standard_normal((rows, rank), dtype=np.float32)
    xa = rng.standard_normal((n, rank), dtype=np.float32)
    y = np.full((n, rows), np.nan, np.float32)
    engine.multiply(pool, weight, x, y, True, b=b, xa=xa, b_q8=True)
    assert np.allclose(y, xa @ round_codes(b, -1).T, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_the_end_of_a_product(kind: str) -> None:
    """B in half floats and in floats, 70 rows."""
    rng = np.random.default_rng(4)
    rows, columns, rank, n = 70, 64, 5, 9
    w = quantized({"w.weight": rng.standard_normal((rows, columns), dtype=np.float32)}, kind)["w.weight"]
    pool, arena = engine.ThreadPool(2), engine.Arena()
    weight = engine.Weight(w.rows(0, rows), BY_NAME[kind].id, columns)  # type: ignore[union-attr]
    weight.pack(pool, arena)
    x = rng.standard_normal((n, columns), dtype=np.float32)
    b, xa = bfloats(rng.standard_normal((rows, rank), dtype=np.float32)), np.empty((n, rank), np.float32)
    xa[:] = rng.standard_normal((n, rank))
    odd = rng.standard_normal((rows, 1), dtype=np.float32)
    found = []
    for own_b, own_xa in ((b, xa), (np.hstack([b, odd]), np.hstack([xa, np.zeros((n, 1), np.float32)]))):
        y = np.full((n, rows), np.nan, np.float32)
        engine.multiply(
            pool, weight, x, y, kind == "Q8_0", b=np.ascontiguousarray(own_b), xa=np.ascontiguousarray(own_xa)
        )
        found.append(y)
    assert np.array_equal(*found)
    base = np.full((n, rows), np.nan, np.float32)
    engine.multiply(pool, weight, x, base, kind == "Q8_0")
    assert np.allclose(found[0] - base, xa @ b.T, rtol=0, atol=1e-4)


def test_what_half_floats_do_not_reach() -> None:
    """Ranks that hold very different numbers, and ones that no power of two brings into reach, stay floats: no bit is
    lost where the weights are floats."""
    small = model("llama")
    ready = program(small)
    plain = changed(adapter_of("llama"), lambda pair: {"a": bfloats(pair.a), "b": bfloats(pair.b)})

    def spread(pair: object) -> dict[str, Floats]:
        a, b = pair.a.copy(), pair.b.copy()  # type: ignore[attr-defined]
        a[..., 0, 1::2] *= np.float32(2.0**-40)
        return {"a": a, "b": b}

    wide = changed(plain, spread)
    far = changed(
        wide, lambda pair: {"a": pair.a * np.float32(2.0**110), "b": pair.b * np.float32(2.0**-110)}
    )
    assert np.array_equal(logits(ready, wide), logits(ready, far))
