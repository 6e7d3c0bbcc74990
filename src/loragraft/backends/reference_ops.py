"""What every node means: NumPy, float32, one short function for each op. `backends.reference` walks graphs with them.

Each row is worked on alone: products go row by row, for a BLAS sums one row in another order than many; everything else
here is the same for each element or row by itself. So a row's values do not depend on the other rows, to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
import numpy.typing as npt

from loragraft.arrays import Array, Floats, Ids
from loragraft.graph.ops import Node, Op


class Pass(Protocol):
    """What the rows under way have in common."""

    positions: Ids
    """[T]: of every row in its sequence."""
    wants: npt.NDArray[np.bool_]
    """[T]"""
    context: int | None
    """`Options.context`"""

    def weight(self, name: str) -> Floats:
        """The tensor `name` in float32."""

    def rounded(self, node: Node, x: Floats, scale_rows: Ids | None = None) -> Floats:
        """The input of a product as `Options.activations` has it."""

    def rounded_for(self, a: str, x: Floats) -> Floats:
        """The same for the matrix `a` of an adapter."""

    def extend(self, layer: int, keys: Floats, values: Floats) -> tuple[Floats, Floats]:
        """Append keys and values [T, kv_heads, head_dim] of the rows' sequence; all that it holds of `layer`."""

    def recall(self, node: Node) -> Floats | None:
        """What the rows' sequence kept of a recurrent node; None at its beginning."""

    def keep(self, node: Node, state: Floats) -> None:
        """Keep it for the rows that come."""


Run = Callable[..., Array]
"""(pass, node, *inputs) -> value"""


def rows_product(x: Floats, w: Floats) -> Floats:
    """x w^T for x [..., in] and w [out, in], row by row."""
    rows = x.reshape(-1, x.shape[-1])
    y = np.empty((len(rows), len(w)), np.float32)
    for row, out in zip(rows, y, strict=True):
        np.dot(w, row, out=out)
    return y.reshape(*x.shape[:-1], len(w))


def _positions(s: Pass, node: Node) -> Array:
    return s.positions


def _embed(s: Pass, node: Node, ids: Ids) -> Array:
    return s.weight(node.weights[0])[ids]


def _embed_lora(s: Pass, node: Node, x: Floats, ids: Ids) -> Array:
    a, b = (s.weight(name) for name in node.weights)
    return x + np.float32(node.attrs["scale"]) * rows_product(b[ids], np.ascontiguousarray(a.T))


def _scale(s: Pass, node: Node, y: Floats) -> Array:
    return y * s.weight(node.weights[0])


def _arch_scale(s: Pass, node: Node, y: Floats) -> Array:
    return y * (s.weight(node.weights[0]) if node.weights else np.float32(node.attrs["value"]))


def _rms_norm(s: Pass, node: Node, x: Floats) -> Array:
    w = s.weight(node.weights[0]) if node.weights else np.ones(node.attrs["group"], np.float32)
    groups = x.reshape(*x.shape[:-1], -1, w.shape[-1])
    mean_square = np.mean(groups * groups, axis=-1, keepdims=True, dtype=np.float32)
    normed = groups / np.sqrt(mean_square + np.float32(node.attrs["eps"])) * w
    return normed.reshape(x.shape)


def _layer_norm(s: Pass, node: Node, x: Floats) -> Array:
    centred = x - np.mean(x, axis=-1, keepdims=True, dtype=np.float32)
    variance = np.mean(centred * centred, axis=-1, keepdims=True, dtype=np.float32)
    y = centred / np.sqrt(variance + np.float32(node.attrs["eps"]))
    if node.weights:
        y = y * s.weight(node.weights[0])
    return y + s.weight(node.weights[1]) if len(node.weights) > 1 else y


def _matmul(s: Pass, node: Node, x: Floats) -> Array:
    return rows_product(s.rounded(node, x), np.atleast_2d(s.weight(node.weights[0])))


def _lora(s: Pass, node: Node, y: Floats, x: Floats) -> Array:
    a, b = (s.weight(name) for name in node.weights)
    return y + np.float32(node.attrs["scale"]) * rows_product(
        rows_product(s.rounded_for(node.weights[0], x), a), b
    )


def _dora_scale(s: Pass, node: Node, y: Floats) -> Array:
    return y * s.weight(node.weights[0])


def _bias(s: Pass, node: Node, y: Floats) -> Array:
    return y + s.weight(node.weights[0])


def _each(x: Floats, ids: Ids) -> Array:
    """The input of every chosen expert: [T, k, in] from [T, in] or [T, k, in]."""
    return np.broadcast_to(x[:, None, :] if x.ndim == 2 else x, (*ids.shape, x.shape[-1]))


def _per_expert(weight: Floats, x: Floats, ids: Ids) -> Array:
    """y[t, j] = weight[ids[t, j]] x[t, j]: [T, k, out] for weight [E, out, in] and x [T, in] or [T, k, in]."""
    x = _each(x, ids)
    y = np.empty((*ids.shape, weight.shape[1]), dtype=np.float32)
    for place in np.ndindex(ids.shape):
        np.dot(weight[ids[place]], x[place], out=y[place])
    return y


def _experts_matmul(s: Pass, node: Node, x: Floats, ids: Ids) -> Array:
    return _per_expert(s.weight(node.weights[0]), s.rounded(node, _each(x, ids), ids), ids)


def _experts_scale(s: Pass, node: Node, y: Floats, ids: Ids) -> Array:
    return y * s.weight(node.weights[0])[ids][..., None]


def _experts_lora(s: Pass, node: Node, y: Floats, x: Floats, ids: Ids) -> Array:
    a, b = (s.weight(name) for name in node.weights)
    x = s.rounded_for(node.weights[0], x)
    return y + np.float32(node.attrs["scale"]) * _per_expert(b, _per_expert(a, x, ids), ids)


def _experts_dora_scale(s: Pass, node: Node, y: Floats, ids: Ids) -> Array:
    return y * s.weight(node.weights[0])[ids]


def _experts_bias(s: Pass, node: Node, y: Floats, ids: Ids) -> Array:
    return y + s.weight(node.weights[0])[ids]


def _best(scores: Floats, count: int) -> Array:
    """Indices of the largest in each row, largest first."""
    return np.argsort(-scores, axis=-1, kind="stable")[:, :count]


def _top_k(s: Pass, node: Node, logits: Floats) -> Array:
    at = node.attrs
    scores = _gates(logits, at["gating"]) if at.get("gating") else logits
    for bias in node.weights:
        scores = scores + s.weight(bias).reshape(-1)
    groups = at.get("groups") or 1
    if groups > 1:
        grouped = scores.reshape(len(scores), groups, -1)
        best = -np.sort(-grouped, axis=-1)[..., : at["group_best"]]
        kept = np.zeros(grouped.shape[:2], bool)
        np.put_along_axis(kept, _best(best.sum(axis=-1), at["groups_used"]), True, axis=-1)
        scores = np.where(kept[..., None], grouped, -np.inf).reshape(scores.shape)
    return _best(scores, at["k"]).astype(np.int32)


def _gates(logits: Floats, gating: str) -> Array:
    return softmax(logits) if gating == "softmax" else sigmoid(logits)


def softmax(x: Floats) -> Array:
    """Along the last axis."""
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def sparse_mixer(logits: Floats, ids: Ids, margin: float) -> Array:
    """Of a ROUTE node, the softmaxes [T, k, E] that each expert's value is of."""
    found, left = [], np.ones(logits.shape, np.bool_)
    for place in range(ids.shape[1]):
        own = ids[:, place : place + 1].astype(np.int64)
        largest = np.take_along_axis(logits, own, axis=-1)
        with np.errstate(invalid="ignore"):  # 0 / 0 is near
            far = (largest - logits) / np.maximum(np.abs(logits), largest) > np.float32(margin)
        powers = np.where(left & ~far, np.exp(logits - largest), np.float32(0))
        found.append(powers / powers.sum(axis=-1, keepdims=True))
        np.put_along_axis(left, own, False, axis=-1)
    return np.stack(found, axis=1)


def _route(s: Pass, node: Node, logits: Floats, ids: Ids) -> Array:
    place = ids.astype(np.int64)
    if node.attrs["gating"] == "sparse_mixer":
        gates = sparse_mixer(logits, ids, node.attrs["margin"])
        chosen = np.take_along_axis(gates, place[..., None], axis=-1)[..., 0]
    else:
        chosen = np.take_along_axis(_gates(logits, node.attrs["gating"]), place, axis=-1)
    if node.attrs["normalize"]:
        chosen = chosen / chosen.sum(axis=-1, keepdims=True)
    return chosen * np.float32(node.attrs["scale"])


def _experts_sum(s: Pass, node: Node, y: Floats, weights: Floats) -> Array:
    return np.asarray((y * weights[..., None]).sum(axis=1))


def position_factors(node: Node, positions: Ids) -> Floats:
    """What a POSITION_SCALE node multiplies the rows at `positions` by."""
    at = node.attrs
    steps = np.floor((positions.astype(np.float64) + at["offset"]) / at["length"])
    return np.asarray(1 + at["slope"] * np.log1p(steps), np.float32)


def _position_scale(s: Pass, node: Node, x: Floats) -> Array:
    return np.asarray(x * position_factors(node, s.positions).reshape(-1, *[1] * (x.ndim - 1)))


def rope_factors(node: Node, context: int | None) -> str | None:
    """The weight that a ROPE node's frequencies are divided by in a program for `context` tokens."""
    if len(node.weights) < 2:
        return node.weights[0] if node.weights else None
    long, short = node.weights
    return long if (context or node.attrs["context"]) > node.attrs["original"] else short


def _rope(s: Pass, node: Node, x: Floats) -> Array:
    at = node.attrs
    frequencies = np.asarray(at["frequencies"], dtype=np.float64)
    if factors := rope_factors(node, s.context):
        frequencies = frequencies / s.weight(factors)
    angles = s.positions[:, None, None] * frequencies  # [T, 1, rotary / 2]
    cos = (np.cos(angles) * at["magnitude"]).astype(np.float32)
    sin = (np.sin(angles) * at["magnitude"]).astype(np.float32)
    heads = x.reshape(len(x), at["heads"], at["head_dim"]).copy()
    rotary = at["rotary"]
    if at["pairs"] == "adjacent":
        first, second = slice(0, rotary, 2), slice(1, rotary, 2)
    else:
        first, second = slice(0, rotary // 2), slice(rotary // 2, rotary)
    a, b = heads[..., first].copy(), heads[..., second].copy()
    heads[..., first] = a * cos - b * sin
    heads[..., second] = a * sin + b * cos
    return heads.reshape(x.shape)


def _attention(s: Pass, node: Node, q: Floats, k: Floats, v: Floats) -> Array:
    at = node.attrs
    tokens, heads, kv_heads, head_dim = len(q), at["heads"], at["kv_heads"], at["head_dim"]
    value_dim, softcap, window = at.get("value_dim") or head_dim, at.get("softcap"), at["window"]
    keys, values = s.extend(
        at["layer"], k.reshape(tokens, kv_heads, head_dim), v.reshape(tokens, kv_heads, value_dim)
    )
    mixed = np.empty((tokens, kv_heads, heads // kv_heads, value_dim), np.float32)
    chunk = at.get("chunk")
    slopes = np.asarray(at["slopes"], np.float32).reshape(kv_heads, -1, 1) if at.get("slopes") else None
    for row, position in enumerate(s.positions.tolist()):
        seen = slice(0 if window is None else max(0, position + 1 - window), position + 1)
        if chunk is not None:
            seen = slice(position // chunk * chunk, position + 1)
        # Query heads in groups that share a key-value head: [kv_heads, group, head_dim].
        grouped = q[row].reshape(kv_heads, -1, head_dim)
        scores = grouped @ keys[seen].transpose(1, 2, 0) * np.float32(at["scale"])
        if softcap is not None:
            scores = _soft_cap(scores, softcap)
        if slopes is not None:
            scores = scores + slopes * np.arange(seen.start - position, 1, dtype=np.float32)
        count = scores.shape[-1]
        if node.weights:
            sinks = s.weight(node.weights[0]).reshape(kv_heads, -1, 1)
            scores = np.concatenate([scores, sinks], axis=-1)
        mixed[row] = softmax(scores)[..., :count] @ values[seen].transpose(1, 0, 2)
    return mixed.reshape(tokens, -1)


def _soft_cap(x: Floats, cap: float) -> Array:
    return np.asarray(np.float32(cap) * np.tanh(x / np.float32(cap)))


def _split(s: Pass, node: Node, x: Floats) -> Array:
    at = node.attrs
    if not at.get("group"):
        return x[..., at["start"] : at["stop"]]
    groups = x.reshape(*x.shape[:-1], -1, at["group"])
    return groups[..., at["start"] : at["stop"]].reshape(*x.shape[:-1], -1)


def _short_conv(s: Pass, node: Node, x: Floats) -> Array:
    w = s.weight(node.weights[0])
    width = w.shape[1]
    before = s.recall(node)
    if before is None:
        before = np.zeros((width - 1, x.shape[1]), np.float32)
    rows = np.concatenate([before, x])
    s.keep(node, rows[len(x) :].copy())
    y = np.zeros_like(x)
    for j in range(width):
        y += rows[j : j + len(x)] * w[:, j]
    return y + s.weight(node.weights[1]) if len(node.weights) > 1 else y


def _time_step(s: Pass, node: Node, x: Floats) -> Array:
    dt = np.logaddexp(x + s.weight(node.weights[0]), np.float32(0))
    return np.asarray(np.clip(dt, np.float32(node.attrs["low"]), np.float32(node.attrs["high"])))


def _gated_delta(s: Pass, node: Node, q: Floats, k: Floats, v: Floats, dt: Floats, beta: Floats) -> Array:
    def write(state: Floats, key: Floats, value: Floats, row: int) -> Floats:
        known = (state * key[..., None]).sum(axis=1)
        return np.asarray((value - known) * beta[row][:, None])

    return _scan(s, node, q, k, v, dt, write)


def _state_space(s: Pass, node: Node, x: Floats, b: Floats, c: Floats, dt: Floats) -> Array:
    y = _scan(s, node, c, b, x, dt, lambda state, key, value, row: value * dt[row][:, None])
    return y + x * np.repeat(s.weight(node.weights[1]).reshape(-1), node.attrs["value_dim"])


def _scan(
    s: Pass, node: Node, q: Floats, k: Floats, v: Floats, dt: Floats, write: Callable[..., Floats]
) -> Array:
    """S = exp(A dt) S + k u^T, y = S^T q, token by token: `write(S, k, v, row)` gives u [heads, value_dim]."""
    at, heads = node.attrs, node.attrs["heads"]
    own = np.arange(heads)
    own = own % at["key_heads"] if at.get("tiled") else own // (heads // at["key_heads"])
    queries, keys = (a.reshape(len(a), at["key_heads"], -1)[:, own] for a in (q, k))
    values = v.reshape(len(v), heads, -1)
    decay = np.exp(dt * s.weight(node.weights[0]).reshape(-1))
    state = s.recall(node)
    if state is None:
        state = np.zeros((heads, at["key_dim"], at["value_dim"]), np.float32)
    y = np.empty_like(values)
    for row in range(len(v)):
        state = state * decay[row][:, None, None]
        added = write(state, keys[row], values[row], row)
        state = state + keys[row][..., None] * added[:, None]
        y[row] = (state * queries[row][..., None]).sum(axis=1)
    s.keep(node, state)
    return y.reshape(v.shape)


def _reshape(s: Pass, node: Node, x: Floats) -> Array:
    parts = node.attrs["parts"]
    return x.reshape(len(x), parts, -1) if parts else x.reshape(len(x), -1)


def _all_experts(s: Pass, node: Node, x: Floats) -> Array:
    return np.tile(np.arange(node.attrs["count"], dtype=np.int32), (len(x), 1))


def _add(s: Pass, node: Node, a: Floats, b: Floats) -> Array:
    return a + b


def _mul(s: Pass, node: Node, a: Floats, b: Floats) -> Array:
    return a * b


def sigmoid(x: Floats) -> Array:
    # exp of a non-positive number only: no overflow for large negative x.
    small = np.exp(-np.abs(x))
    return np.asarray(np.where(x >= 0, np.float32(1), small) / (1 + small))


def _silu(s: Pass, node: Node, x: Floats) -> Array:
    return x * sigmoid(x)


_erf = np.vectorize(math.erf, otypes=[np.float32])  # NumPy has none


def _gelu(s: Pass, node: Node, x: Floats) -> Array:
    if node.attrs["approximate"] == "tanh":
        inner = np.float32(np.sqrt(2 / np.pi)) * (x + np.float32(0.044715) * x * x * x)
        bell = np.tanh(inner)
    else:
        bell = _erf(x * np.float32(np.sqrt(0.5)))
    return np.asarray(np.float32(0.5) * x * (1 + bell))


def _xielu(s: Pass, node: Node, x: Floats) -> Array:
    alpha_p, alpha_n, beta, eps = (
        np.float32(node.attrs[name]) for name in ("alpha_p", "alpha_n", "beta", "eps")
    )
    below = (np.expm1(np.minimum(x, eps)) - x) * alpha_n + beta * x
    return np.asarray(np.where(x > 0, alpha_p * x * x + beta * x, below))


def _match_rms(s: Pass, node: Node, x: Floats, y: Floats) -> Array:
    size = np.sqrt(np.mean(y * y, axis=-1)).reshape(len(y), *[1] * (x.ndim - 1))
    own = np.mean(x * x, axis=-1, keepdims=True)
    return np.asarray(x * (size / np.sqrt(np.maximum(own, np.float32(node.attrs["least"])))))


def _gaussian_top_k(s: Pass, node: Node, x: Floats) -> Array:
    above = x - x.mean(axis=-1, keepdims=True)
    deviation = np.sqrt(np.mean(above * above, axis=-1, keepdims=True))
    return np.asarray(np.maximum(above - np.float32(node.attrs["deviations"]) * deviation, np.float32(0)))


def _channel_scale(s: Pass, node: Node, x: Floats) -> Array:
    return x * s.weight(node.weights[0])


def _clamp(s: Pass, node: Node, x: Floats) -> Array:
    low, high = node.attrs["low"], node.attrs["high"]
    return np.clip(x, None if low is None else np.float32(low), None if high is None else np.float32(high))


def _last(s: Pass, node: Node, x: Floats) -> Array:
    return x[s.wants]


OPS: Mapping[Op, Run] = {
    Op.POSITIONS: _positions,
    Op.EMBED: _embed,
    Op.EMBED_SCALE: _scale,
    Op.EMBED_LORA: _embed_lora,
    Op.RMS_NORM: _rms_norm,
    Op.LAYER_NORM: _layer_norm,
    Op.MATCH_RMS: _match_rms,
    Op.GAUSSIAN_TOP_K: _gaussian_top_k,
    Op.CHANNEL_SCALE: _channel_scale,
    Op.MATMUL: _matmul,
    Op.WEIGHT_SCALE: _scale,
    Op.LORA: _lora,
    Op.DORA_SCALE: _dora_scale,
    Op.BIAS: _bias,
    Op.ARCH_SCALE: _arch_scale,
    Op.EXPERTS_MATMUL: _experts_matmul,
    Op.EXPERTS_WEIGHT_SCALE: _experts_scale,
    Op.EXPERTS_LORA: _experts_lora,
    Op.EXPERTS_DORA_SCALE: _experts_dora_scale,
    Op.EXPERTS_BIAS: _experts_bias,
    Op.ALL_EXPERTS: _all_experts,
    Op.TOP_K: _top_k,
    Op.ROUTE: _route,
    Op.EXPERTS_SUM: _experts_sum,
    Op.POSITION_SCALE: _position_scale,
    Op.ROPE: _rope,
    Op.ATTENTION: _attention,
    Op.SHORT_CONV: _short_conv,
    Op.TIME_STEP: _time_step,
    Op.GATED_DELTA: _gated_delta,
    Op.STATE_SPACE: _state_space,
    Op.SPLIT: _split,
    Op.CONCAT: lambda s, node, a, b: np.concatenate([a, b], axis=-1),
    Op.RESHAPE: _reshape,
    Op.ADD: _add,
    Op.MUL: _mul,
    Op.SILU: _silu,
    Op.SIGMOID: lambda s, node, x: sigmoid(x),
    Op.GELU: _gelu,
    Op.RELU: lambda s, node, x: np.maximum(x, np.float32(0)),
    Op.TANH: lambda s, node, x: np.tanh(x),
    Op.SOFTPLUS: lambda s, node, x: np.logaddexp(x, np.float32(0)),
    Op.XIELU: _xielu,
    Op.SOFT_CAP: lambda s, node, x: _soft_cap(x, node.attrs["cap"]),
    Op.CLAMP: _clamp,
    Op.SHIFT: lambda s, node, x: x + np.float32(node.attrs["value"]),
    Op.LAST: _last,
}
