"""The pool of keys, values and states: attention over its pages against float64, and to the bit against itself; forks,
cuts, windows, bounds."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loragraft import _native
from loragraft.arrays import Doubles, Floats
from loragraft.quants import reference
from loragraft.quants.types import BY_NAME
from tolerances import NATIVE_F32, nmse

engine = _native.engine

TYPES = ("f32", "f16", "q8_0")
PAGE = 64
REWIND = 64


def as_stored(x: Floats, dim: int, kind: str) -> Doubles:
    """What reading back rows [..., dim] gives."""
    if kind == "f16":
        return x.astype(np.float16).astype(np.float64)
    if kind == "q8_0":
        padded = np.zeros((x.size // dim, -(-dim // 32) * 32), np.float32)
        padded[:, :dim] = x.reshape(-1, dim)
        codes = reference.quantize(padded, BY_NAME["Q8_0"])
        return reference.dequantize(codes, BY_NAME["Q8_0"])[:, :dim].reshape(x.shape).astype(np.float64)
    return x.astype(np.float64)


@dataclass
class Case:
    """A layer's attention, and a text's q, k and v for it."""

    kind: str = "f16"
    heads: int = 4
    kv_heads: int = 2
    key_dim: int = 32
    value_dim: int = 32
    window: int = 0
    soft_cap: float = 0.0
    sinks: bool = False
    tokens: int = 100
    seed: int = 0
    isa: str = ""
    q: Floats = field(init=False)
    k: Floats = field(init=False)
    v: Floats = field(init=False)
    sink: Floats | None = field(init=False)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        n = self.tokens
        self.q = rng.standard_normal((n, self.heads * self.key_dim), dtype=np.float32) * 2
        self.k = rng.standard_normal((n, self.kv_heads * self.key_dim), dtype=np.float32) * 2
        self.v = rng.standard_normal((n, self.kv_heads * self.value_dim), dtype=np.float32)
        self.sink = rng.standard_normal(self.heads).astype(np.float32) * 3 if self.sinks else None

    @property
    def layer(self) -> tuple[int, int, int, int]:
        return (self.kv_heads, self.key_dim, self.value_dim, self.window)

    @property
    def scale(self) -> float:
        return float(np.float32(self.key_dim**-0.5))

    def pool(self, max_bytes: int = 0) -> engine.StatePool:
        return engine.StatePool([self.layer], [], self.kind, max_bytes, self.isa)

    def float64(self) -> Doubles:
        """[tokens, heads * value_dim]"""
        n, group = self.tokens, self.heads // self.kv_heads
        keys = as_stored(self.k.reshape(n, self.kv_heads, self.key_dim), self.key_dim, self.kind)
        values = as_stored(self.v.reshape(n, self.kv_heads, self.value_dim), self.value_dim, self.kind)
        y = np.empty((n, self.heads, self.value_dim))
        position = np.arange(n)
        seen = position[:, None] >= position
        if self.window:
            seen &= position[:, None] - position < self.window
        for head in range(self.heads):
            q = self.q.reshape(n, self.heads, self.key_dim)[:, head].astype(np.float64)
            scores = q @ keys[:, head // group].T * self.scale
            if self.soft_cap:
                scores = self.soft_cap * np.tanh(scores / self.soft_cap)
            scores = np.where(seen, scores, -np.inf)
            sink = -np.inf if self.sink is None else float(self.sink[head])
            top = np.maximum(scores.max(1, keepdims=True), sink)
            weights = np.exp(scores - top)
            total = weights.sum(1, keepdims=True) + np.exp(sink - top)
            y[:, head] = weights @ values[:, head // group] / total
        return y.reshape(n, -1)

    def feed(
        self,
        pool: engine.StatePool,
        pieces: list[tuple[int, int, int]],
        threads: engine.ThreadPool | None = None,
        layer: int = 0,
    ) -> Floats:
        """One batch of pieces (sequence, the text's first token, its last), each at the end of its sequence."""
        rows, text = [], []
        for sequence, first, last in pieces:
            start = pool.length(sequence)
            rows += [(sequence, start + i) for i in range(last - first)]
            text += range(first, last)
        grown = [(sequence, last - first) for sequence, first, last in pieces]
        y = np.full((len(rows), self.heads * self.value_dim), 7e7, np.float32)
        threads = threads or engine.ThreadPool(1)
        pool.reserve(grown)
        pool.append(threads, layer, rows, self.k[text], self.v[text])
        pool.attend(threads, layer, rows, self.q[text], y, self.heads, self.scale, self.soft_cap, self.sink)
        pool.advance(grown)
        return y

    def whole(self) -> Floats:
        pool = self.pool()
        return self.feed(pool, [(pool.open(), 0, self.tokens)])


SHAPES = [
    Case(heads=4, kv_heads=2, key_dim=64, value_dim=64, tokens=600),
    Case(heads=1, kv_heads=1, key_dim=20, value_dim=20, tokens=300),
    Case(heads=9, kv_heads=3, key_dim=64, value_dim=64, tokens=150),
    Case(heads=8, kv_heads=1, key_dim=80, value_dim=80, window=100, tokens=400),
    Case(heads=2, kv_heads=2, key_dim=48, value_dim=33, window=7, tokens=300),
    Case(heads=6, kv_heads=1, key_dim=128, value_dim=96, soft_cap=5.0, tokens=270),
    Case(heads=5, kv_heads=1, key_dim=64, value_dim=64, sinks=True, tokens=270),
    Case(heads=16, kv_heads=1, key_dim=32, value_dim=16, sinks=True, soft_cap=2.0, window=1, tokens=130),
    Case(heads=7, kv_heads=1, key_dim=192, value_dim=128, sinks=True, window=257, tokens=530),
]


def of_type(case: Case, kind: str, seed: int = 0, isa: str = "") -> Case:
    return Case(
        kind,
        case.heads,
        case.kv_heads,
        case.key_dim,
        case.value_dim,
        case.window,
        case.soft_cap,
        case.sinks,
        case.tokens,
        seed,
        isa,
    )


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda c: f"{c.heads}x{c.key_dim}-{c.kv_heads}x{c.value_dim}")
def test_attention_against_float64(shape: Case, kind: str) -> None:
    """Most of it at once, the rest token by token, on every instruction set."""
    expected = of_type(shape, kind).float64()
    n = shape.tokens
    for isa in _native.isas():
        case = of_type(shape, kind, isa=isa)
        pool = case.pool()
        sequence = pool.open()
        y = [case.feed(pool, [(sequence, 0, n - 40)])]
        y += [case.feed(pool, [(sequence, i, i + 1)]) for i in range(n - 40, n)]
        assert nmse(np.concatenate(y), expected) < NATIVE_F32, isa
        assert pool.length(sequence) == n


def test_the_first_token_sees_itself_alone() -> None:
    for kind in TYPES:
        case = Case(kind, tokens=1)
        value = as_stored(case.v.reshape(2, 32), 32, kind).repeat(2, axis=0).reshape(1, -1)
        assert np.array_equal(case.whole(), value.astype(np.float32))


# ---- the same to the bit ----


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.data())
def test_the_same_to_the_bit_in_any_company(data: st.DataObject) -> None:
    """Sequences that read the same text, cut into batches, forked and cut back at random."""
    draw = data.draw
    shape = draw(st.sampled_from(SHAPES))
    kind, isa = draw(st.sampled_from(TYPES)), draw(st.sampled_from(_native.isas()))
    case = of_type(shape, kind, draw(st.integers(0, 3)), isa)
    whole = case.whole()
    pool = case.pool()
    pools = [engine.ThreadPool(n) for n in (1, 2, 3)]
    open_now = [pool.open()]
    for _ in range(draw(st.integers(1, 8))):
        match draw(st.sampled_from(["feed", "feed", "feed", "fork", "cut", "open", "close"])):
            case "open":
                open_now.append(pool.open())
            case "close" if len(open_now) > 1:
                pool.close(open_now.pop(draw(st.integers(0, len(open_now) - 1))))
            case "fork":
                parent = draw(st.sampled_from(open_now))
                back = draw(st.integers(0, min(REWIND, pool.length(parent))))
                open_now.append(pool.fork(parent, pool.length(parent) - back))
            case "cut":
                parent = draw(st.sampled_from(open_now))
                back = draw(st.integers(0, min(REWIND, pool.length(parent))))
                # A second cut may go behind what the first one left.
                try:
                    pool.truncate(parent, pool.length(parent) - back)
                except ValueError:
                    assert case.window
            case _:
                pieces = []
                for sequence in draw(st.permutations(open_now)):
                    start = pool.length(sequence)
                    count = draw(st.one_of(st.integers(0, 3), st.integers(0, 300)))
                    if start + count <= case.tokens and count:
                        pieces.append((sequence, start, start + count))
                if pieces:
                    y = case.feed(pool, pieces, draw(st.sampled_from(pools)))
                    expected = np.concatenate([whole[first:last] for _, first, last in pieces])
                    assert np.array_equal(y, expected), (case.kind, pieces)
    for sequence in open_now:
        pool.close(sequence)
    assert pool.bytes == 0


@pytest.mark.parametrize("kind", TYPES)
def test_long_rows_to_the_bit_for_any_number_of_threads(kind: str) -> None:
    """One token behind many spans, which several threads share: more spans than any one of them is given."""
    case = Case(kind, heads=2, kv_heads=1, tokens=3001, sinks=True)
    results = []
    for n in (1, 2, 5):
        pool, threads = case.pool(), engine.ThreadPool(n)
        sequence = pool.open()
        case.feed(pool, [(sequence, 0, 3000)], threads)
        results.append(case.feed(pool, [(sequence, 3000, 3001)], threads))
    assert np.array_equal(results[0], results[1])
    assert np.array_equal(results[0], results[2])
    assert nmse(results[0], case.float64()[-1:]) < NATIVE_F32


# ---- what is not a number ----


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("window", [0, 20])
@pytest.mark.parametrize("what", ["q", "k", "v"])
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
@pytest.mark.parametrize("isa", _native.isas())
def test_what_is_no_number_shows_where_it_is_seen_and_nowhere_else(
    kind: str, window: int, what: str, wrong: float, isa: str
) -> None:
    clean = Case(kind, window=window, tokens=90, heads=4, kv_heads=2, isa=isa)
    whole = clean.whole()
    bad = Case(kind, window=window, tokens=90, heads=4, kv_heads=2, isa=isa)
    token = 40
    getattr(bad, what)[token, 3] = wrong  # of the first head, or of the first key-value head's two
    y = bad.whole().reshape(90, 4, 32)
    there = np.zeros((90, 4), bool)
    last = 90 if not window else token + window
    there[token : token + 1 if what == "q" else last, : 1 if what == "q" else 2] = True
    # An infinite score may be the smallest there is, and then has no weight.
    assert not np.isfinite(y[there]).all(axis=-1).any() or (wrong == np.inf and what == "k")
    if np.isnan(wrong):
        assert np.isnan(y[there]).any(axis=-1).all()
        if what != "v":
            assert np.isnan(y[there]).all()
    assert np.array_equal(y[~there], whole.reshape(90, 4, 32)[~there])


def test_what_is_no_number_is_not_remembered_by_a_reused_page() -> None:
    for kind in TYPES:
        case = Case(kind, tokens=50)
        whole = case.whole()
        bad = Case(kind, tokens=50)
        bad.k[:], bad.v[:] = np.nan, np.nan
        pool = case.pool()
        sequence = pool.open()
        assert np.isnan(bad.feed(pool, [(sequence, 0, 50)])).all()
        pool.truncate(sequence, 0)
        assert np.array_equal(case.feed(pool, [(sequence, 0, 50)]), whole)


def test_what_f16_cannot_hold_is_not_hidden() -> None:
    case = Case("f16", tokens=10)
    case.v[4, 0] = 1e6
    assert not np.isfinite(case.whole()[4:, 0]).any()


# ---- sequences ----


@pytest.mark.parametrize("kind", TYPES)
def test_forks_share_pages_until_they_write(kind: str) -> None:
    case, other = Case(kind, tokens=300, seed=1), Case(kind, tokens=300, seed=2)
    pool = case.pool()
    first = pool.open()
    whole = case.whole()
    case.feed(pool, [(first, 0, 200)])
    four = pool.bytes
    second, third = pool.fork(first, 200), pool.fork(first, 130)
    assert pool.bytes == four
    page = four // 4
    # The second's and the third's next tokens come into pages that others hold.
    mixed = np.concatenate([case.k[:130], other.k[130:300]]), np.concatenate([case.v[:130], other.v[130:300]])
    other.k, other.v = mixed
    other.q[:130] = case.q[:130]
    y = other.feed(pool, [(third, 130, 131)])
    assert pool.bytes == four + page
    assert np.array_equal(y, other.whole()[130:131])
    assert np.array_equal(case.feed(pool, [(second, 200, 210)]), whole[200:210])
    assert pool.bytes == four + 2 * page
    # The first alone holds its last page now.
    assert np.array_equal(case.feed(pool, [(first, 200, 250)]), whole[200:250])
    assert pool.bytes == four + 2 * page
    pool.close(first)
    assert np.array_equal(case.feed(pool, [(second, 210, 300)]), whole[210:])
    assert np.array_equal(other.feed(pool, [(third, 131, 300)]), other.whole()[131:])
    pool.close(second)
    pool.close(third)
    assert pool.bytes == 0


def test_two_that_share_a_page_write_in_one_batch() -> None:
    case = Case(tokens=100)
    whole = case.whole()
    pool = case.pool()
    first = pool.open()
    case.feed(pool, [(first, 0, 70)])
    second = pool.fork(first, 70)
    assert np.array_equal(
        case.feed(pool, [(first, 70, 75), (second, 70, 80)]), np.concatenate([whole[70:75], whole[70:80]])
    )
    assert pool.bytes == 3 * pool_page(case)


def pool_page(case: Case) -> int:
    pool = case.pool()
    pool.reserve([(pool.open(), 1)])
    return pool.bytes


@pytest.mark.parametrize("kind", TYPES)
def test_a_page_is_as_large_as_its_values(kind: str) -> None:
    bits = {"f32": 32, "f16": 16, "q8_0": 8.5}[kind]
    case = Case(kind, kv_heads=3, heads=3, key_dim=64, value_dim=128)
    assert pool_page(case) == PAGE * 3 * (64 + 128) * bits / 8


def test_cutting_back() -> None:
    case = Case(tokens=200)
    whole = case.whole()
    pool = case.pool()
    sequence = pool.open()
    case.feed(pool, [(sequence, 0, 200)])
    for length in (150, 64, 3, 0):
        pool.truncate(sequence, length)
        assert pool.length(sequence) == length
        assert pool.bytes == -(-length // PAGE) * pool_page(case)
        assert np.array_equal(case.feed(pool, [(sequence, length, 200)]), whole[length:])
    with pytest.raises(ValueError, match="cannot be cut: found 201, expected 0 to 200 tokens"):
        pool.truncate(sequence, 201)
    with pytest.raises(ValueError, match="cannot be forked: found -1, expected 0 to 200 tokens"):
        pool.fork(sequence, -1)


def test_room_that_was_not_used_is_kept_or_cut() -> None:
    """A batch that failed after `reserve` leaves its sequence as it was."""
    case = Case(tokens=200)
    pool = case.pool()
    sequence = pool.open()
    case.feed(pool, [(sequence, 0, 60)])
    pool.reserve([(sequence, 100)])
    assert pool.length(sequence) == 60
    assert np.array_equal(case.feed(pool, [(sequence, 60, 200)]), case.whole()[60:])
    pool.reserve([(sequence, 1000)])
    pool.truncate(sequence, 200)
    assert pool.bytes == 4 * pool_page(case)


@pytest.mark.parametrize("window", [1, 5, 64, 100, 300])
def test_pages_behind_a_window_are_given_back(window: int) -> None:
    case = Case(tokens=1000, window=window)
    whole, page = case.whole(), pool_page(case)
    pool = case.pool()
    sequence = pool.open()
    most = 0
    for first in range(0, 1000, 10):
        assert np.array_equal(case.feed(pool, [(sequence, first, first + 10)]), whole[first : first + 10])
        most = max(most, pool.bytes)
    assert most <= ((window + REWIND + 10) // PAGE + 2) * page
    # Cut back as far as is promised, and go on; further is refused, and nothing has changed.
    pool.truncate(sequence, 1000 - REWIND)
    assert np.array_equal(case.feed(pool, [(sequence, 1000 - REWIND, 1000)]), whole[1000 - REWIND :])
    held = pool.bytes
    with pytest.raises(ValueError, match=r"cannot be cut: found 500, expected 0 or \d+ to 1000 tokens"):
        pool.truncate(sequence, 500)
    with pytest.raises(ValueError, match=r"cannot be forked: found 500, expected 0 or \d+ to 1000 tokens"):
        pool.fork(sequence, 500)
    assert (pool.length(sequence), pool.bytes) == (1000, held)
    pool.truncate(sequence, 0)
    assert pool.bytes == 0
    assert np.array_equal(case.feed(pool, [(sequence, 0, 50)]), whole[:50])


def test_layers_with_windows_of_their_own() -> None:
    full, windowed = Case(tokens=400, heads=4, kv_heads=2), Case(tokens=400, heads=3, kv_heads=3, window=50)
    small = Case(tokens=400, heads=1, kv_heads=1, key_dim=20, value_dim=24)
    pool = engine.StatePool([full.layer, windowed.layer, small.layer], [], "f16")
    sequence = pool.open()
    cases = (full, windowed, small)
    for first in range(0, 400, 50):
        rows = [(sequence, i) for i in range(first, first + 50)]
        pool.reserve([(sequence, 50)])
        for layer, case in enumerate(cases):
            part = slice(first, first + 50)
            pool.append(engine.ThreadPool(2), layer, rows, case.k[part], case.v[part])
            y = np.empty((50, case.heads * case.value_dim), np.float32)
            pool.attend(engine.ThreadPool(2), layer, rows, case.q[part], y, case.heads, case.scale)
            assert np.array_equal(y, case.whole()[part])
        pool.advance([(sequence, 50)])
    assert pool.bytes == 7 * (pool_page(full) + pool_page(small)) + 3 * pool_page(windowed)


def test_a_bound_is_kept_and_nothing_has_changed() -> None:
    case = Case(tokens=300)
    page = pool_page(case)
    pool = case.pool(3 * page)
    first, second = pool.open(), pool.open()
    case.feed(pool, [(first, 0, 100)])
    with pytest.raises(
        MemoryError, match=r"no room for \d+ bytes more: found \d+ in use, expected up to \d+"
    ):
        pool.reserve([(first, 10), (second, 65)])
    assert (pool.bytes, pool.length(first), pool.length(second)) == (2 * page, 100, 0)
    fork = pool.fork(first, 100)
    assert np.array_equal(case.feed(pool, [(fork, 100, 128)]), case.whole()[100:128])
    with pytest.raises(MemoryError):
        pool.reserve([(fork, 1)])
    with pytest.raises(MemoryError):
        pool.reserve([(second, 2**31 - 1)])
    pool.close(fork)
    assert np.array_equal(case.feed(pool, [(first, 100, 192)]), case.whole()[100:192])


def test_states_begin_at_zero_and_are_shared_until_written() -> None:
    """Zeros at first, shared by a fork until one of the two goes on, and without a way back."""
    pool = engine.StatePool([(1, 16, 16, 0)], [3, 5], "f32", 100_000)
    first, each = pool.open(), 4 * 32  # in units of 16 floats
    assert pool.bytes == 0

    def state(sequence: int, layer: int, position: int = 0) -> list[float]:
        out = np.full([3, 5][layer], 9, np.float32)
        pool.get_state(sequence, max(position, pool.length(sequence)), layer, out)
        return out.tolist()

    def feed(sequence: int, values: list[float]) -> None:
        pool.reserve([(sequence, 4)])
        pool.set_state(sequence, 0, np.array(values, np.float32))
        pool.advance([(sequence, 4)])

    assert state(first, 1) == [0] * 5
    with pytest.raises(ValueError, match="no room was made for its states"):
        pool.set_state(first, 0, np.ones(3, np.float32))
    pages = pool.bytes
    feed(first, [1, 2, 3])
    page = pool.bytes - pages - each
    second = pool.fork(first, 4)
    assert pool.bytes == page + each
    assert state(second, 0) == [1, 2, 3]
    pool.reserve([(second, 4)])
    pool.set_state(second, 0, np.array([4, 5, 6], np.float32))
    # a pass that fails comes no further: what it wrote is for its own later rows alone
    assert (state(second, 0), state(second, 0, 5)) == ([1, 2, 3], [4, 5, 6])
    pool.set_state(second, 0, np.array([7, 8, 9], np.float32))
    pool.advance([(second, 4)])
    assert (state(first, 0), state(second, 0)) == ([1, 2, 3], [7, 8, 9])
    assert pool.bytes == 2 * (page + each)
    with pytest.raises(ValueError, match="cannot be forked: found 3, expected 0 or 4 to 4 tokens"):
        pool.fork(first, 3)
    with pytest.raises(ValueError, match="cannot be cut: found 3, expected 0 or 4 to 4 tokens"):
        pool.truncate(first, 3)
    with pytest.raises(
        ValueError, match="does not hold the state of this position: found 3, expected 4 or more"
    ):
        pool.get_state(first, 3, 0, np.empty(3, np.float32))
    pool.truncate(first, 4)
    assert state(first, 0) == [1, 2, 3]
    assert state(pool.fork(first, 0), 0) == [0, 0, 0]
    pool.truncate(first, 0)
    assert state(first, 0) == [0, 0, 0]
    feed(first, [1, 1, 1])
    pool.close(second)
    pool.close(first)
    assert pool.bytes == 0
    with pytest.raises(ValueError, match="recurrent layer: found 2"):
        pool.get_state(pool.open(), 0, 2, np.empty(3, np.float32))
    nothing = engine.StatePool([], [0], "f16")
    of_nothing = nothing.open()
    nothing.reserve([(of_nothing, 1)])
    nothing.set_state(of_nothing, 0, np.empty(0, np.float32))
    nothing.advance([(of_nothing, 1)])
    small = engine.StatePool([], [100], "f16", 2 * 448 - 1)  # 7 times 16 floats each
    one, other = small.open(), small.open()
    small.reserve([(one, 5)])
    small.advance([(one, 5)])
    for sequence in (one, other, small.fork(one, 5)):
        with pytest.raises(MemoryError):
            small.reserve([(sequence, 1)])
    assert (small.bytes, small.length(one)) == (448, 5)


def test_misuse_is_refused() -> None:
    case = Case(tokens=100)
    pool = case.pool()
    sequence = pool.open()
    pool.close(sequence)
    for use in (
        lambda: pool.close(sequence),
        lambda: pool.fork(sequence, 0),
        lambda: pool.truncate(sequence, 0),
        lambda: pool.length(sequence),
        lambda: pool.reserve([(sequence, 1)]),
        lambda: pool.advance([(sequence, 1)]),
    ):
        with pytest.raises(ValueError, match=f"sequence {sequence}: is not open"):
            use()
    one = pool.open()
    assert one != sequence
    y = np.empty((1, 128), np.float32)

    def append(position: int) -> None:
        pool.append(engine.ThreadPool(2), 0, [(one, position)], case.k[:1], case.v[:1])

    def attend(position: int, layer: int = 0, heads: int = 4) -> None:
        pool.attend(
            engine.ThreadPool(2),
            layer,
            [(one, position)],
            np.zeros((1, heads * 32), np.float32),
            y[:, : heads * 32],
            heads,
            1.0,
        )

    with pytest.raises(ValueError, match="no room was made: found position 0, expected less than 0"):
        append(0)
    case.feed(pool, [(one, 0, 100)])
    with pytest.raises(ValueError, match="would be overwritten: found position 99"):
        append(99)
    with pytest.raises(ValueError, match="no room was made: found position 128"):
        attend(128)
    with pytest.raises(ValueError, match="position -1"):
        attend(-1)
    with pytest.raises(ValueError, match="no such layer"):
        attend(0, layer=1)
    with pytest.raises(ValueError, match="query heads: found 3, expected a multiple of 2"):
        attend(0, heads=3)
    with pytest.raises(ValueError, match="is named twice"):
        pool.reserve([(one, 1), (one, 1)])
    with pytest.raises(ValueError, match="cannot grow by so many tokens: found -1"):
        pool.reserve([(one, -1)])
    with pytest.raises(ValueError, match="cannot grow by so many tokens"):
        pool.reserve([(one, 2**31 - 100)])
    with pytest.raises(ValueError, match="has no room for so many tokens: found 29, expected up to 28"):
        pool.advance([(one, 29)])
    shared = pool.fork(one, 100)
    pool.truncate(shared, 90)
    with pytest.raises(ValueError, match="would be overwritten"):
        pool.append(engine.ThreadPool(2), 0, [(shared, 90)], case.k[:1], case.v[:1])


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ((0, 16, 16, 0), "key-value heads: found 0"),
        ((1, 0, 16, 0), "width of a key: found 0"),
        ((1, 16, 1 << 17, 0), "width of a value: found 131072"),
        ((1, 16, 16, -1), "window: found -1"),
        ((1 << 16, 1 << 16, 1 << 16, 0), "bytes of 64 positions"),
    ],
)
def test_shapes_out_of_proportion_are_refused(layer: tuple[int, int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        engine.StatePool([layer], [], "f32")


def test_states_out_of_proportion_are_refused() -> None:
    for floats in ([-1], [1 << 39], [1 << 37] * 3):
        with pytest.raises(ValueError, match=r"floats of a state|bytes of a sequence's states"):
            engine.StatePool([], floats, "f32")
