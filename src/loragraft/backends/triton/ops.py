"""The nodes that stand alone, in torch: one short function for each op, as `backends.reference_ops` has them in NumPy.

What sums over a row goes through kernels, or adds columns one after the other: torch sums a row in an order that may
depend on how many there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from loragraft.backends.triton.launch import Launcher
from loragraft.graph.ops import Node, Op


class Pass(Protocol):
    """What the rows under way have in common."""

    torch: Any
    launch: Launcher
    wanted: Any
    """int64: the rows whose logits are wanted"""

    def small(self, name: str) -> Any:
        """The tensor `name` of the model in float32."""

    def turns(self, node: Node) -> tuple[Any, Any]:
        """Cosines and sines of a ROPE node [rows, rotary / 2]."""

    def position_factors(self, node: Node) -> Any:
        """Of a POSITION_SCALE node, float32 [rows]."""

    def slopes(self, node: Node) -> Any:
        """Of an ATTENTION node that has some, float32 [heads]."""

    def extend(self, node: Node, keys: Any, values: Any) -> tuple[Any, Any, Any, Any, Any]:
        """Keep keys and values [rows, ...]; the layer's, and the tables, lists and positions to find them by."""

    def states(self, node: Node) -> tuple[Any, Any, Any]:
        """Of a recurrent node: the states of all slots, the runs (kernels/recurrent.py), and the run of each row."""


def _norm(p: Pass, node: Node, x: Any) -> Any:
    weights = [p.small(name) for name in node.weights]
    centred = node.op is Op.LAYER_NORM
    size = x.shape[-1] if centred else weights[0].shape[-1] if weights else node.attrs["group"]
    weight, bias = (*weights, None, None)[:2]
    return p.launch.norm(x, size, weight, bias, node.attrs["eps"], centred=centred)


def _rope(p: Pass, node: Node, x: Any) -> Any:
    at = node.attrs
    cos, sin = (part[:, None, :] for part in p.turns(node))
    heads = x.reshape(len(x), at["heads"], at["head_dim"]).clone()
    rotary = at["rotary"]
    if at["pairs"] == "adjacent":
        first, second = slice(0, rotary, 2), slice(1, rotary, 2)
    else:
        first, second = slice(0, rotary // 2), slice(rotary // 2, rotary)
    a, b = heads[..., first].clone(), heads[..., second].clone()
    heads[..., first] = a * cos - b * sin
    heads[..., second] = a * sin + b * cos
    return heads.reshape(x.shape)


def _attention(p: Pass, node: Node, q: Any, k: Any, v: Any) -> Any:
    keys, values, tables, lists, positions = p.extend(node, k, v)
    sinks = p.small(node.weights[0]) if node.weights else None
    slopes = p.slopes(node) if node.attrs.get("slopes") else None
    return p.launch.attention(q, keys, values, sinks, slopes, tables, lists, positions, node.attrs)


def _softplus(p: Pass, x: Any) -> Any:
    return p.torch.logaddexp(x, p.torch.zeros_like(x))


def _short_conv(p: Pass, node: Node, x: Any) -> Any:
    weight, *bias = (p.small(name) for name in node.weights)
    return p.launch.convolve(x, weight, bias[0] if bias else None, *p.states(node))


def _time_step(p: Pass, node: Node, x: Any) -> Any:
    dt = _softplus(p, x + p.small(node.weights[0]).reshape(-1))
    return dt.clamp(node.attrs["low"], node.attrs["high"])


def _gated_delta(p: Pass, node: Node, q: Any, k: Any, v: Any, dt: Any, beta: Any) -> Any:
    states, runs, _ = p.states(node)
    decay = p.small(node.weights[0])
    return p.launch.scan(q, k, v, dt, beta, decay, None, states, runs, node.attrs)


def _state_space(p: Pass, node: Node, x: Any, keys: Any, queries: Any, dt: Any) -> Any:
    states, runs, _ = p.states(node)
    decay, skip = (p.small(name) for name in node.weights)
    return p.launch.scan(queries, keys, x, dt, None, decay, skip, states, runs, node.attrs)


def _gates(p: Pass, logits: Any, gating: str) -> Any:
    return p.launch.softmax(logits) if gating == "softmax" else p.torch.sigmoid(logits)


def _best(p: Pass, scores: Any, count: int) -> Any:
    """Indices of the largest in each row, largest first, the first of equals before the others."""
    return p.torch.sort(scores, dim=-1, descending=True, stable=True).indices[..., :count]


def _top_k(p: Pass, node: Node, logits: Any) -> Any:
    at = node.attrs
    scores = _gates(p, logits, at["gating"]) if at.get("gating") else logits
    for bias in node.weights:
        scores = scores + p.small(bias).reshape(-1)
    groups = at.get("groups") or 1
    if groups > 1:
        grouped = scores.reshape(len(scores), groups, -1)
        best = p.torch.sort(grouped, dim=-1, descending=True).values[..., : at["group_best"]]
        kept = p.torch.zeros(grouped.shape[:2], dtype=p.torch.bool, device=scores.device)
        kept.scatter_(1, _best(p, _sum_columns(best), at["groups_used"]), True)
        scores = grouped.masked_fill(~kept[..., None], float("-inf")).reshape(scores.shape)
    return _best(p, scores, at["k"]).to(p.torch.int32)


def _sum_columns(x: Any) -> Any:
    """Over the last axis, first to last."""
    total = x[..., 0]
    for column in range(1, x.shape[-1]):
        total = total + x[..., column]
    return total


def _sparse_mixer(p: Pass, logits: Any, ids: Any, margin: float) -> Any:
    found, left = [], p.torch.ones_like(logits, dtype=p.torch.bool)
    for place in range(ids.shape[1]):
        own = ids[:, place : place + 1]
        largest = p.torch.gather(logits, 1, own)
        far = (largest - logits) / p.torch.maximum(logits.abs(), largest) > margin
        powers = p.torch.exp(logits - largest).masked_fill(far | ~left, 0.0)
        found.append(1 / _sum_columns(powers))
        left = left.scatter(1, own, False)
    return p.torch.stack(found, dim=1)


def _route(p: Pass, node: Node, logits: Any, ids: Any) -> Any:
    at = node.attrs
    if at["gating"] == "sparse_mixer":
        chosen = _sparse_mixer(p, logits, ids.long(), at["margin"])
    else:
        chosen = p.torch.gather(_gates(p, logits, at["gating"]), 1, ids.long())
    if at["normalize"]:
        chosen = chosen / _sum_columns(chosen)[:, None]
    return chosen * at["scale"]


def _experts_sum(p: Pass, node: Node, y: Any, weights: Any) -> Any:
    total = y[:, 0] * weights[:, 0, None]
    for expert in range(1, y.shape[1]):
        total = total + y[:, expert] * weights[:, expert, None]
    return total


def _position_scale(p: Pass, node: Node, x: Any) -> Any:
    return x * p.position_factors(node).reshape(-1, *[1] * (x.dim() - 1))


def _arch_scale(p: Pass, node: Node, x: Any) -> Any:
    return x * (p.small(node.weights[0]) if node.weights else node.attrs["value"])


def _gelu(p: Pass, node: Node, x: Any) -> Any:
    if node.attrs["approximate"] == "none":
        return p.torch.nn.functional.gelu(x)
    # On the processor torch's own computes the last elements of a tensor otherwise than those before.
    return 0.5 * x * (1 + p.torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def _xielu(p: Pass, node: Node, x: Any) -> Any:
    at = node.attrs
    below = (p.torch.expm1(x.clamp(max=at["eps"])) - x) * at["alpha_n"] + at["beta"] * x
    return p.torch.where(x > 0, at["alpha_p"] * x * x + at["beta"] * x, below)


def _split(p: Pass, node: Node, x: Any) -> Any:
    at = node.attrs
    groups = x.reshape(*x.shape[:-1], -1, at.get("group") or x.shape[-1])
    return groups[..., at["start"] : at["stop"]].reshape(*x.shape[:-1], -1).contiguous()


def _reshape(p: Pass, node: Node, x: Any) -> Any:
    parts = node.attrs["parts"]
    return x.reshape(len(x), parts, -1) if parts else x.reshape(len(x), -1)


def _all_experts(p: Pass, node: Node, x: Any) -> Any:
    ids = p.torch.arange(node.attrs["count"], dtype=p.torch.int32, device=x.device)
    return ids.expand(len(x), -1).contiguous()


Run = Callable[..., Any]
"""(pass, node, *inputs) -> value"""

OPS: Mapping[Op, Run] = {
    Op.RMS_NORM: _norm,
    Op.LAYER_NORM: _norm,
    Op.MATCH_RMS: lambda p, node, x, model: p.launch.match_rms(x, model, node.attrs["least"]),
    Op.GAUSSIAN_TOP_K: lambda p, node, x: p.launch.gaussian_top_k(x, node.attrs["deviations"]),
    Op.CHANNEL_SCALE: lambda p, node, x: x * p.small(node.weights[0]),
    Op.ARCH_SCALE: _arch_scale,
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
    Op.CONCAT: lambda p, node, a, b: p.torch.cat([a, b], dim=-1),
    Op.RESHAPE: _reshape,
    Op.ALL_EXPERTS: _all_experts,
    Op.ADD: lambda p, node, a, b: a + b,
    Op.MUL: lambda p, node, a, b: a * b,
    Op.SILU: lambda p, node, x: p.torch.nn.functional.silu(x),
    Op.SIGMOID: lambda p, node, x: p.torch.sigmoid(x),
    Op.GELU: _gelu,
    Op.RELU: lambda p, node, x: p.torch.relu(x),
    Op.TANH: lambda p, node, x: p.torch.tanh(x),
    Op.SOFTPLUS: lambda p, node, x: _softplus(p, x),
    Op.XIELU: _xielu,
    Op.SOFT_CAP: lambda p, node, x: node.attrs["cap"] * p.torch.tanh(x / node.attrs["cap"]),
    Op.CLAMP: lambda p, node, x: x.clamp(node.attrs["low"], node.attrs["high"]),
    Op.SHIFT: lambda p, node, x: x + node.attrs["value"],
    Op.LAST: lambda p, node, x: x[p.wanted],
}
