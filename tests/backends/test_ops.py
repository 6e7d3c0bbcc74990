"""Operations that the trained models do not have: against their definitions in float64, on both backends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from gpu import WITH_GPUS
from loragraft.backends.batch import Piece
from loragraft.backends.cpu.program import NativeBackend
from loragraft.backends.program import Backend
from loragraft.backends.reference import ReferenceBackend
from loragraft.errors import GraphError
from loragraft.graph.build import GraphBuilder
from loragraft.graph.ops import Op, TensorFact
from loragraft.graph.spec import verify
from running import EXACT, all_logits, logits_of
from tolerances import NATIVE_F32, REFERENCE, nmse

Floats = npt.NDArray[Any]
VOCABULARY, WIDTH, TOKENS = 11, 24, 7
IDS = np.arange(TOKENS, dtype=np.int32)
BACKENDS = [
    pytest.param(ReferenceBackend(), REFERENCE, id="reference"),
    pytest.param(NativeBackend(), NATIVE_F32, id="native"),
    *WITH_GPUS,
]

#: Op, attributes, its definition.
POINTWISE: list[tuple[Op, dict[str, Any], Callable[[Floats], Floats]]] = [
    (Op.RELU, {}, lambda x: np.maximum(x, 0)),
    (Op.TANH, {}, np.tanh),
    (Op.SOFTPLUS, {}, lambda x: np.log1p(np.exp(x))),
    (Op.SOFT_CAP, {"cap": 3.0}, lambda x: 3.0 * np.tanh(x / 3.0)),
    (Op.CLAMP, {"low": -1.5, "high": 0.25}, lambda x: np.clip(x, -1.5, 0.25)),
    (Op.CLAMP, {"low": None, "high": 1.0}, lambda x: np.minimum(x, 1.0)),
    (Op.SHIFT, {"value": 1.0}, lambda x: x + 1.0),
    (Op.LAYER_NORM, {"eps": 1e-6}, lambda x: centred(x)),
    (Op.RMS_NORM, {"eps": 1e-6, "group": 8}, lambda x: normed(x, 8)),
    (Op.GAUSSIAN_TOP_K, {"deviations": 0.75}, lambda x: far_above(x, 0.75)),
]


def normed(x: Floats, group: int) -> Floats:
    groups = x.reshape(len(x), -1, group)
    return (groups / np.sqrt((groups**2).mean(axis=-1, keepdims=True) + 1e-6)).reshape(x.shape)


def centred(x: Floats) -> Floats:
    away = x - x.mean(axis=-1, keepdims=True)
    return away / np.sqrt((away**2).mean(axis=-1, keepdims=True) + 1e-6)


def far_above(x: Floats, deviations: float) -> Floats:
    cut = x.mean(axis=-1, keepdims=True) + deviations * x.std(axis=-1, keepdims=True)
    return np.maximum(x - cut, 0)


def run(backend: Backend, op: Op, attrs: dict[str, Any], weights: dict[str, Floats]) -> Floats:
    """The value of `op` on the embeddings of all tokens."""
    g = GraphBuilder("test", {name: TensorFact(array.shape, "F32") for name, array in weights.items()})
    graph = g.finish(g.add(op, (g.embed(g.tokens()),), label="op", **attrs))
    return logits_of(backend, graph, weights, IDS)


@pytest.mark.parametrize(("backend", "tolerance"), BACKENDS)
@pytest.mark.parametrize(
    ("op", "attrs", "definition"), POINTWISE, ids=lambda item: getattr(item, "__name__", str(item)[:40])
)
def test_pointwise(
    backend: Backend, tolerance: float, op: Op, attrs: dict[str, Any], definition: Callable[[Floats], Floats]
) -> None:
    x = np.random.default_rng(0).normal(0, 3, (VOCABULARY, WIDTH)).astype(np.float32)
    found = run(backend, op, attrs, {"token_embd.weight": x})
    assert nmse(found, definition(x[IDS].astype(np.float64))) < tolerance


@pytest.mark.parametrize(("backend", "tolerance"), BACKENDS)
def test_extremes(backend: Backend, tolerance: float) -> None:
    """No overflow on the way, and what is not a number stays none."""
    x = np.zeros((VOCABULARY, WIDTH), np.float32)
    x[0, :4] = 1e30, -1e30, 200, -200
    weights = {"token_embd.weight": x}
    np.testing.assert_allclose(run(backend, Op.SOFT_CAP, {"cap": 30.0}, weights)[0, :2], [30, -30])
    np.testing.assert_array_equal(
        run(backend, Op.SOFTPLUS, {}, weights)[0, :3], np.array([1e30, 0, 200], np.float32)
    )
    x[1, 0] = np.nan
    assert np.isnan(run(backend, Op.RELU, {}, weights)[1, 0])
    assert np.isnan(run(backend, Op.CLAMP, {"low": -1.0, "high": 1.0}, weights)[1, 0])


@pytest.mark.parametrize(("backend", "tolerance"), BACKENDS)
def test_groups_as_large_as_another_value(backend: Backend, tolerance: float) -> None:
    """Three groups of each row, times a number for each channel; one that is nearly nothing stays small, and a row
    without a spread has nothing that is far above its mean."""
    rng = np.random.default_rng(3)
    x = rng.normal(0, 3, (VOCABULARY, WIDTH)).astype(np.float32)
    x[1, : WIDTH // 3] = 1e-4
    x[2] = 0.5
    weights = {"token_embd.weight": x, "scale.weight": rng.normal(0, 1, WIDTH // 3).astype(np.float32)}
    g = GraphBuilder("test", {name: TensorFact(array.shape, "F32") for name, array in weights.items()})
    whole = g.embed(g.tokens())
    model = g.split(whole, 1, 6, "model")
    matched = g.add(Op.MATCH_RMS, (g.heads(whole, 3, "parts"), model), label="match", least=1e-5)
    scaled = g.add(Op.CHANNEL_SCALE, (matched,), ("scale.weight",), "scaled")
    found = logits_of(backend, g.finish(g.flat(scaled, "flat")), weights, IDS)
    groups = x[IDS].astype(np.float64).reshape(TOKENS, 3, -1)
    size = np.sqrt((x[IDS, 1:6].astype(np.float64) ** 2).mean(axis=-1))[:, None, None]
    own = np.sqrt(np.maximum((groups**2).mean(axis=-1, keepdims=True), 1e-5))
    expected = (groups * size / own * weights["scale.weight"]).reshape(TOKENS, -1)
    assert nmse(found, expected) < tolerance
    assert nmse(found[1, : WIDTH // 3], expected[1, : WIDTH // 3]) < tolerance
    assert not run(backend, Op.GAUSSIAN_TOP_K, {"deviations": 1.5}, {"token_embd.weight": x})[2].any()


@pytest.mark.parametrize(("backend", "tolerance"), BACKENDS)
def test_learned_positions(backend: Backend, tolerance: float) -> None:
    """Continued over two calls; a position that the model has no row for is refused, and the sequence goes on."""
    rng = np.random.default_rng(2)
    weights = {
        "token_embd.weight": rng.normal(0, 1, (VOCABULARY, WIDTH)).astype(np.float32),
        "position_embd.weight": rng.normal(0, 1, (TOKENS, WIDTH)).astype(np.float32),
    }
    g = GraphBuilder("test", {name: TensorFact(array.shape, "F32") for name, array in weights.items()})
    graph = g.finish(g.add(Op.ADD, (g.embed(g.tokens()), g.embed_positions()), label="sum"))
    program = backend.prepare(graph, weights)
    sequence = program.open_sequence()
    found = np.concatenate(
        [program.run([Piece(sequence, part, wants="all")]) for part in (IDS[:3], IDS[3:6])]
    )
    expected = weights["token_embd.weight"][IDS[:6]] + weights["position_embd.weight"][:6]
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(
        GraphError, match="the position is past the model's context: found 7, expected up to 6"
    ):
        program.run([Piece(sequence, IDS[:2])])
    last = weights["token_embd.weight"][IDS[6]] + weights["position_embd.weight"][6]
    np.testing.assert_array_equal(program.run([Piece(sequence, IDS[6:])])[0], last)


@pytest.mark.parametrize(
    ("op", "attrs", "message"),
    [
        (Op.SOFT_CAP, {"cap": 0.0}, "cap: found 0.0, expected a number above 0"),
        (Op.CLAMP, {"low": 1.0, "high": 0.0}, "limits: found 1.0 to 0.0"),
        (Op.GAUSSIAN_TOP_K, {}, "attribute deviations: found None, expected float"),
        (Op.RMS_NORM, {"eps": 1e-6, "group": 7}, "elements of a group: found 7, expected a divisor of 24"),
        (Op.RESHAPE, {"parts": 5}, "parts: found 5, expected 0, or a divisor of 24"),
        (Op.ALL_EXPERTS, {"count": 0}, "experts: found 0, expected at least 1"),
    ],
)
def test_illegal_attributes(op: Op, attrs: dict[str, Any], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        run(ReferenceBackend(), op, attrs, {"token_embd.weight": np.ones((VOCABULARY, WIDTH), np.float32)})


HEADS, KV_HEADS, KEY_DIM = 4, 2, 8
OPTIONS: list[dict[str, Any]] = [
    {"softcap": 2.0},
    {"sinks": True},
    {"value_dim": 6},
    {"softcap": 1.5, "sinks": True, "value_dim": 10, "window": 3},
    {"slopes": (0.5, 0.25, 0.125, 2.0)},
    {"chunk": 3},
    {"slopes": (0.5, 0.25, 0.125, 2.0), "sinks": True, "window": 3},
]


def attention_weights(options: dict[str, Any]) -> dict[str, Floats]:
    rng = np.random.default_rng(1)
    value_dim = options.get("value_dim", KEY_DIM)
    shapes = {
        "token_embd": (VOCABULARY, WIDTH),
        "q": (HEADS * KEY_DIM, WIDTH),
        "k": (KV_HEADS * KEY_DIM, WIDTH),
        "v": (KV_HEADS * value_dim, WIDTH),
    }
    weights = {f"{name}.weight": rng.normal(0, 1, shape).astype(np.float32) for name, shape in shapes.items()}
    if options.get("sinks"):
        weights["sinks.weight"] = rng.normal(0, 2, HEADS).astype(np.float32)
    return weights


def attend(weights: dict[str, Floats], options: dict[str, Any]) -> Floats:
    """Query by query and head by head, in float64."""
    w = {name: array.astype(np.float64) for name, array in weights.items()}
    x = w["token_embd.weight"][IDS]
    q, k, v = (x @ w[f"{name}.weight"].T for name in "qkv")
    q, k = q.reshape(TOKENS, HEADS, -1), k.reshape(TOKENS, KV_HEADS, -1)
    v = v.reshape(TOKENS, KV_HEADS, -1)
    out = np.zeros((TOKENS, HEADS, v.shape[-1]))
    for t in range(TOKENS):
        first = max(0, t + 1 - (options.get("window") or TOKENS))
        first = max(first, t // options.get("chunk", TOKENS) * options.get("chunk", TOKENS))
        for head in range(HEADS):
            shared = head // (HEADS // KV_HEADS)
            scores = [0.3 * (q[t, head] @ k[s, shared]) for s in range(first, t + 1)]
            if "softcap" in options:
                scores = [options["softcap"] * np.tanh(score / options["softcap"]) for score in scores]
            if "slopes" in options:
                scores = [score - options["slopes"][head] * (t - first - i) for i, score in enumerate(scores)]
            powers = np.exp(scores)
            total = powers.sum() + (np.exp(w["sinks.weight"][head]) if options.get("sinks") else 0.0)
            out[t, head] = sum(
                p / total * v[s, shared] for p, s in zip(powers, range(first, t + 1), strict=True)
            )
    return out.reshape(TOKENS, -1)


@pytest.mark.parametrize(("backend", "tolerance"), BACKENDS)
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "+".join(options))
def test_attention(options: dict[str, Any], backend: Backend, tolerance: float) -> None:
    weights = attention_weights(options)
    g = GraphBuilder("test", {name: TensorFact(array.shape, "F32") for name, array in weights.items()})
    x = g.embed(g.tokens())
    q, k, v = (g.linear(x, name) for name in "qkv")
    attrs = {"layer": 0, "heads": HEADS, "kv_heads": KV_HEADS, "head_dim": KEY_DIM, "scale": 0.3}
    attrs |= {"window": options.get("window"), "value_dim": options.get("value_dim")}
    attrs |= {name: options.get(name) for name in ("softcap", "slopes", "chunk")}
    sinks = ("sinks.weight",) if options.get("sinks") else ()
    graph = g.finish(g.add(Op.ATTENTION, (q, k, v), sinks, "attention", **attrs))
    verify(graph)
    found = all_logits(backend.prepare(graph, weights, EXACT), IDS, [4])
    assert nmse(found, attend(weights, options)) < tolerance


CHOICES: list[dict[str, Any]] = [
    {"k": 3, "gating": "sigmoid"},
    {"k": 3, "gating": "softmax"},
    {"k": 3, "gating": "sigmoid", "groups": 4, "groups_used": 2, "group_best": 2},
    {"k": 2, "gating": "softmax", "groups": 6, "groups_used": 1, "group_best": 1},
]


@pytest.mark.parametrize(("backend", "tolerance"), BACKENDS)
@pytest.mark.parametrize("attrs", CHOICES, ids=str)
def test_experts_are_chosen_by_corrected_gates_within_groups(
    backend: Backend, tolerance: float, attrs: dict[str, Any]
) -> None:
    """What the chosen experts' weights sum to, with weights of their own for each."""
    rng = np.random.default_rng(5)
    x = rng.normal(0, 2, (VOCABULARY, WIDTH)).astype(np.float32)
    bias = rng.normal(0, 1, WIDTH).astype(np.float32)
    own = 2.0 ** np.arange(WIDTH, dtype=np.float64)
    weights = {
        "token_embd.weight": x,
        "blk.0.exp_probs_b.bias": bias,
        "blk.0.ffn_up_exps.weight": np.repeat(own[:, None, None], WIDTH, axis=2).astype(np.float32),
    }
    g = GraphBuilder("test", {name: TensorFact(array.shape, "F32") for name, array in weights.items()})
    logits = g.embed(g.tokens())
    ids = g.add(Op.TOP_K, (logits,), ("blk.0.exp_probs_b.bias",), label="top_k", **attrs)
    ones = g.add(
        Op.SHIFT, (g.add(Op.CLAMP, (logits,), label="zero", low=0.0, high=0.0),), label="one", value=1.0
    )
    up = g.experts(ones, ids, "blk.0.ffn_up_exps")
    even = g.add(Op.CLAMP, (logits,), label="even", low=0.0, high=0.0)
    route = g.add(
        Op.ROUTE, (even, ids), label="route", gating="softmax", normalize=True, scale=float(attrs["k"])
    )
    found = logits_of(backend, g.finish(g.add(Op.EXPERTS_SUM, (up, route), label="sum")), weights, IDS)
    gates = x[IDS].astype(np.float64)
    if attrs["gating"] == "sigmoid":
        gates = 1 / (1 + np.exp(-gates))
    else:
        gates = np.exp(gates) / np.exp(gates).sum(axis=-1, keepdims=True)
    scores = gates + bias
    groups = attrs.get("groups", 1)
    for row, got in zip(scores, found[:, 0], strict=True):
        parts = row.reshape(groups, -1)
        sums = np.sort(parts, axis=1)[:, -attrs.get("group_best", 1) :].sum(axis=1)
        for group in np.argsort(-sums)[attrs.get("groups_used", groups) :]:
            parts[group] = -np.inf
        best = np.argsort(-parts.reshape(-1))[: attrs["k"]]
        assert round(float(got) / WIDTH) == int(own[best].sum())


@pytest.mark.parametrize(("backend", "tolerance"), BACKENDS)
def test_queries_grow_with_their_position(backend: Backend, tolerance: float) -> None:
    x = np.random.default_rng(6).normal(0, 1, (VOCABULARY, WIDTH)).astype(np.float32)
    attrs = {"length": 3.0, "offset": 1.0, "slope": 0.25}
    found = run(backend, Op.POSITION_SCALE, attrs, {"token_embd.weight": x})
    factors = 1 + 0.25 * np.log(1 + np.floor((np.arange(TOKENS) + 1) / 3))
    assert nmse(found, x[IDS].astype(np.float64) * factors[:, None]) < tolerance


@pytest.mark.parametrize(("backend", "tolerance"), BACKENDS)
def test_xielu_is_its_formula(backend: Backend, tolerance: float) -> None:
    x = np.random.default_rng(7).normal(0, 3, (VOCABULARY, WIDTH)).astype(np.float32)
    attrs = {"alpha_p": 0.7, "alpha_n": 1.3, "beta": 0.5, "eps": -1e-6}
    found, wide = run(backend, Op.XIELU, attrs, {"token_embd.weight": x}), x[IDS].astype(np.float64)
    below = 1.3 * (np.exp(np.minimum(wide, 0)) - 1 - wide) + 0.5 * wide
    assert nmse(found, np.where(wide > 0, 0.7 * wide * wide + 0.5 * wide, below)) < tolerance


@pytest.mark.parametrize(("backend", "tolerance"), BACKENDS)
def test_a_matrix_for_each_head(backend: Backend, tolerance: float) -> None:
    """Heads taken apart, one part of each multiplied, the other put behind it again."""
    rng = np.random.default_rng(8)
    weights = {
        "token_embd.weight": rng.normal(0, 1, (VOCABULARY, WIDTH)).astype(np.float32),
        "stack.weight": rng.normal(0, 1, (HEADS, 5, 4)).astype(np.float32),
    }
    g = GraphBuilder("test", {name: TensorFact(array.shape, "F32") for name, array in weights.items()})
    x = g.embed(g.tokens())
    heads = g.heads(x, HEADS, "heads")
    ids = g.add(Op.ALL_EXPERTS, (x,), label="ids", count=HEADS)
    product = g.experts(g.split(heads, 0, 4, "first"), ids, "stack")
    whole = g.concat(product, g.split(heads, 4, 6, "rest"), "both")
    graph = g.finish(g.flat(whole, "flat"))
    verify(graph)
    own = weights["token_embd.weight"][IDS].reshape(TOKENS, HEADS, 6).astype(np.float64)
    turned = np.einsum("thi,hoi->tho", own[..., :4], weights["stack.weight"])
    expected = np.concatenate([turned, own[..., 4:]], axis=-1).reshape(TOKENS, -1)
    assert nmse(logits_of(backend, graph, weights, IDS), expected) < tolerance


def mixed_sparsely(logits: Floats, margin: float) -> Floats:
    """SparseMixer's weights of two experts, as its paper and transformers have them, in float64."""
    found = []
    for row in logits.astype(np.float64):
        own, weights = row.copy(), []
        for _ in range(2):
            best = int(np.argmax(own))
            near = (own[best] - row) / np.maximum(np.abs(row), own[best]) <= margin
            powers = np.where(near & np.isfinite(own), np.exp(own - own[best]), 0.0)
            weights.append(1 / powers.sum())
            own[best] = -np.inf
        found.append(weights)
    return np.array(found)


@pytest.mark.parametrize(("backend", "tolerance"), BACKENDS)
def test_sparse_mixer(backend: Backend, tolerance: float) -> None:
    """Logits that lie close together, above 0 and below."""
    rng = np.random.default_rng(8)
    logits = (rng.choice([-1.0, 1.0], (VOCABULARY, 1)) * rng.uniform(1, 1.06, (VOCABULARY, WIDTH))).astype(
        np.float32
    )
    weights = {"token_embd.weight": logits}
    g = GraphBuilder("test", {"token_embd.weight": TensorFact(logits.shape, "F32")})
    x = g.embed(g.tokens())
    ids = g.add(Op.TOP_K, (x,), label="top", k=2)
    at = {"gating": "sparse_mixer", "normalize": False, "scale": 1.0, "margin": 0.02}
    graph = g.finish(g.add(Op.ROUTE, (x, ids), label="route", **at))
    found, expected = logits_of(backend, graph, weights, IDS), mixed_sparsely(logits[IDS], 0.02)
    assert (expected < 0.5).any()
    assert nmse(found, expected) < tolerance
