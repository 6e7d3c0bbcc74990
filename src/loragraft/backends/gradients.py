"""The gradients that reach the outputs of a slice's linear layers: NumPy, for windows of one length, each read from its
start.

The forward pass is that of `backends.reference_ops`. Products, attention and recurrent layers take all rows
at once. Each op has a rule for the backward pass, from a gradient of its value to those of its inputs. A graph with
another op has no gradients (`missing`). Adapters have none, since what is differentiated is merged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from loragraft.arrays import Array, Floats, Ids
from loragraft.backends.recurrent_gradients import Scan, convolved, from_convolved
from loragraft.backends.reference_ops import OPS, sigmoid, softmax, sparse_mixer
from loragraft.graph.ops import Graph, Node, Op
from loragraft.quants import native

See = Callable[[str, Floats, Floats, "Ids | None"], None]
"""Called with a weight, its inputs [rows, in] (or [rows, k, in]), the gradients of its outputs [rows, out] (or
[rows, k, out]) and the experts chosen [rows, k]."""
Attended = Callable[[str, Floats, Floats, Floats], None]
"""Called with the weight that attention's values are products of, its inputs [windows, length, in], the gradients of
what attention makes [windows, heads, length, dim] and how it weighs positions [windows, heads, length, length]."""


def missing(graph: Graph) -> str | None:
    """An op of `graph` that has no rule, if there is one."""
    return next((str(node.op) for node in graph.nodes if node.op not in _BACKWARD), None)


class Tape:
    """One pass over `windows` windows of `length` tokens: forward, then backward."""

    context: int | None = None
    """As in a program whose options name none."""

    def __init__(self, graph: Graph, weights: Mapping[str, Floats], windows: int, length: int) -> None:
        self.graph, self.weights = graph, weights
        self.windows, self.length = windows, length
        self.positions: Ids = np.tile(np.arange(length, dtype=np.int32), windows)
        self.wants = np.ones(windows * length, np.bool_)
        self.values: list[Any] = []
        self.kept: dict[int, Any] = {}
        self.embedding: Floats | None = None
        """The gradient at what the tokens were looked up as, after `backward` of a slice that begins with them."""
        self._looked_at = _looked_at(graph)

    def weight(self, name: str) -> Floats:
        return self.weights[name]

    def rounded(self, node: Node, x: Floats, scale_rows: Ids | None = None) -> Floats:
        return x

    def rounded_for(self, a: str, x: Floats) -> Floats:
        return x

    def extend(self, layer: int, keys: Floats, values: Floats) -> tuple[Floats, Floats]:
        raise AssertionError("attention is computed here, for all windows at once")

    def forward(self, tokens: Ids, hidden: Floats | None) -> Floats:
        """The slice's output, float32 [rows, width], which the caller may change. `tokens` int32 [windows, length]."""
        self.prepare(tokens, hidden, whole=True)
        output: Floats = self.values[self.graph.output]
        shared = output.base is not None or sum(value is output for value in self.values) > 1
        if shared or self.graph.output in self._looked_at:
            return output.copy()
        self.values[self.graph.output] = None  # it may be the largest thing in memory
        return output

    def prepare(self, tokens: Ids, hidden: Floats | None, *, whole: bool = False) -> None:
        """What `backward` wants to know, or, if `whole`, every value."""
        self.values = []
        for index, node in enumerate(self.graph.nodes):
            inputs = [self.values[source] for source in node.inputs]
            if not whole and index not in self._looked_at:
                value: Any = None
            elif node.op is Op.ATTENTION:
                value, self.kept[index] = _attend(self, node, *inputs)
            else:
                value = self.value(node, tokens, hidden, inputs)
            self.values.append(value)

    def value(self, node: Node, tokens: Ids, hidden: Floats | None, inputs: Sequence[Any]) -> Any:
        """What one node makes of its `inputs`."""
        if node.op is Op.TOKENS:
            return tokens.reshape(-1)
        if node.op is Op.HIDDEN:
            assert hidden is not None
            return hidden
        if node.op is Op.ATTENTION:
            return _attend(self, node, *inputs)[0]
        return (_FORWARD[node.op] if node.op in _FORWARD else OPS[node.op])(self, node, *inputs)

    def backward(self, gradient: Floats, see: See, attended: Attended | None = None) -> Floats | None:
        """What `gradient` of the output is to the hidden states that entered; None for a slice of tokens. `see` is
        shown every product on the way, `attended` every attention whose values are products."""
        gradients: dict[int, Array] = {self.graph.output: gradient}
        entered = None
        for index in range(self.graph.output, -1, -1):
            node = self.graph.nodes[index]
            g = gradients.pop(index, None)
            if g is None:
                continue
            if node.op is Op.HIDDEN:
                entered = g
                continue
            if node.op is Op.EMBED:
                self.embedding = g
            inputs = [self.values[source] for source in node.inputs]
            if node.op in (Op.MATMUL, Op.EXPERTS_MATMUL):
                x, ids = inputs[0], inputs[1] if len(inputs) > 1 else None
                assert x is not None
                see(node.weights[0], x, g, ids)
            made = value_product(self.graph, node) if attended is not None else None
            if made is not None and attended is not None:
                x = self.values[made.inputs[0]].reshape(self.windows, self.length, -1)
                attended(made.weights[0], x, _heads(self, g, node.attrs["heads"]), self.kept[index][0])
            back = _BACKWARD[node.op](self, node, g, self.values[index], self.kept.get(index), *inputs)
            for source, part in zip(node.inputs, back, strict=False):
                if part is not None:
                    gradients[source] = gradients[source] + part if source in gradients else part
        return entered


def value_product(graph: Graph, node: Node) -> Node | None:
    """The product that makes the values of an attention, if nothing but its epilogue comes between."""
    if node.op is not Op.ATTENTION:
        return None
    made = graph.nodes[node.inputs[2]]
    while made.op in (Op.WEIGHT_SCALE, Op.DORA_SCALE, Op.BIAS, Op.ARCH_SCALE):
        made = graph.nodes[made.inputs[0]]
    return made if made.op is Op.MATMUL else None


def _looked_at(graph: Graph) -> set[int]:
    """The nodes whose values the backward pass needs, or that others of them are made of."""
    found: set[int] = set()
    for index in range(len(graph.nodes) - 1, -1, -1):
        node = graph.nodes[index]
        if index in found or node.op not in _BLIND:
            found |= set(node.inputs)
        if node.op in _OWN_VALUE:
            found.add(index)
    return found


# ---- forward ----


def _matmul(t: Tape, node: Node, x: Floats) -> Array:
    return native.product(x, np.atleast_2d(t.weight(node.weights[0])).T)


def _experts_matmul(t: Tape, node: Node, x: Floats, ids: Ids) -> Array:
    weight = t.weight(node.weights[0])
    y = np.empty((*ids.shape, weight.shape[1]), np.float32)
    for expert in np.unique(ids):
        token, place = np.nonzero(ids == expert)
        y[token, place] = native.product(x[token, place] if x.ndim == 3 else x[token], weight[expert].T)
    return y


def _silu(t: Tape, node: Node, x: Floats) -> Array:
    gate = _silu_gate(x)
    return np.divide(x, gate, out=gate)


def _last(t: Tape, node: Node, x: Floats) -> Array:
    return x


def _short_conv(t: Tape, node: Node, x: Floats) -> Array:
    bias = t.weight(node.weights[1]) if len(node.weights) > 1 else None
    return convolved(x, t.weight(node.weights[0]), bias, t.windows)


def _decay(t: Tape, node: Node) -> Floats:
    return t.weight(node.weights[0]).reshape(-1)


def _delta_scan(t: Tape, node: Node, q: Floats, k: Floats, v: Floats, dt: Floats, beta: Floats) -> Scan:
    return Scan(node, t.windows, q, k, v, beta, dt * _decay(t, node), delta=True)


def _space_scan(t: Tape, node: Node, x: Floats, b: Floats, c: Floats, dt: Floats) -> Scan:
    return Scan(node, t.windows, c, b, x, dt, dt * _decay(t, node), delta=False)


def _skip(t: Tape, node: Node) -> Floats:
    """D for each number of the values."""
    return np.repeat(t.weight(node.weights[1]).reshape(-1), node.attrs["value_dim"])


def _state_space(t: Tape, node: Node, x: Floats, *inputs: Floats) -> Array:
    return np.asarray(_space_scan(t, node, x, *inputs).forward() + x * _skip(t, node))


_FORWARD: Mapping[Op, Callable[..., Array]] = {
    Op.MATMUL: _matmul,
    Op.EXPERTS_MATMUL: _experts_matmul,
    Op.SHORT_CONV: _short_conv,
    Op.GATED_DELTA: lambda t, node, *inputs: _delta_scan(t, node, *inputs).forward(),
    Op.STATE_SPACE: _state_space,
    Op.LAST: _last,
    Op.SILU: _silu,
}


def _heads(t: Tape, x: Floats, heads: int) -> Array:
    """[rows, heads * dim] -> [windows, heads, length, dim]."""
    return x.reshape(t.windows, t.length, heads, -1).transpose(0, 2, 1, 3)


def _rows(x: Array) -> Array:
    """The inverse."""
    windows, heads, length, dim = x.shape
    return np.ascontiguousarray(x.transpose(0, 2, 1, 3)).reshape(windows * length, heads * dim)


def _attend(t: Tape, node: Node, q: Floats, k: Floats, v: Floats) -> tuple[Array, tuple[Array, Array | None]]:
    """The value, and the probabilities [windows, heads, length, length] with what the soft cap lets through."""
    at = node.attrs
    group = at["heads"] // at["kv_heads"]
    keys, values = _repeated(t, k, v, at["kv_heads"], group)
    scores = (_heads(t, q, at["heads"]) * np.float32(at["scale"])) @ keys.transpose(0, 1, 3, 2)
    passed = None
    if at.get("softcap") is not None:
        bent = np.tanh(scores / np.float32(at["softcap"]))
        scores, passed = np.float32(at["softcap"]) * bent, 1 - bent * bent
    row, column = np.indices((t.length, t.length))
    if at.get("slopes"):
        slopes = np.asarray(at["slopes"], np.float32)[:, None, None]
        scores = scores + slopes * (column - row).astype(np.float32)
    seen = column <= row
    if at.get("chunk") is not None:
        seen &= column >= row // at["chunk"] * at["chunk"]
    if at["window"] is not None:
        seen &= column > row - at["window"]
    np.copyto(scores, -np.inf, where=~seen)
    most = scores.max(axis=-1, keepdims=True)
    sinks = t.weight(node.weights[0]).reshape(1, -1, 1, 1) if node.weights else None
    if sinks is not None:
        most = np.maximum(most, sinks)
    np.exp(np.subtract(scores, most, out=scores), out=scores)
    total = scores.sum(axis=-1, keepdims=True)
    if sinks is not None:
        total = total + np.exp(sinks - most)
    scores /= total
    return _rows(scores @ values), (scores, passed)


def _repeated(t: Tape, k: Floats, v: Floats, kv_heads: int, group: int) -> tuple[Array, Array]:
    """Keys and values for each head of the queries."""
    return np.repeat(_heads(t, k, kv_heads), group, axis=1), np.repeat(_heads(t, v, kv_heads), group, axis=1)


# ---- backward: (tape, node, gradient, value, kept, *inputs) -> gradients of the inputs ----

Back = tuple["Array | None", ...]


def _from_attention(
    t: Tape, node: Node, g: Floats, value: Floats, kept: Any, q: Floats, k: Floats, v: Floats
) -> Back:
    at, (weights, passed) = node.attrs, kept
    heads, kv_heads = at["heads"], at["kv_heads"]
    group = heads // kv_heads
    keys, values = _repeated(t, k, v, kv_heads, group)
    wanted = _heads(t, g, heads)
    inner = wanted @ values.transpose(0, 1, 3, 2)
    inner -= np.einsum("...i,...i->...", inner, weights)[..., None]
    inner *= weights
    if passed is not None:
        inner *= passed
    scale = np.float32(at["scale"])

    def of_group(x: Array) -> Array:
        return _rows(x.reshape(t.windows, kv_heads, group, *x.shape[2:]).sum(axis=2))

    to_keys = inner.transpose(0, 1, 3, 2) @ (_heads(t, q, heads) * scale)
    to_values = weights.transpose(0, 1, 3, 2) @ wanted
    return _rows(inner @ (keys * scale)), of_group(to_keys), of_group(to_values)


def _from_rms_norm(t: Tape, node: Node, g: Floats, value: Floats, kept: Any, x: Floats) -> Back:
    w = t.weight(node.weights[0]) if node.weights else np.ones(node.attrs["group"], np.float32)
    groups = x.reshape(*x.shape[:-1], -1, w.shape[-1])
    mean = np.mean(groups * groups, axis=-1, keepdims=True, dtype=np.float32)
    inverse = 1 / np.sqrt(mean + np.float32(node.attrs["eps"]))
    normed, through = groups * inverse, g.reshape(groups.shape) * w
    through -= normed * np.mean(through * normed, axis=-1, keepdims=True)
    return ((through * inverse).reshape(x.shape),)


def _from_layer_norm(t: Tape, node: Node, g: Floats, value: Floats, kept: Any, x: Floats) -> Back:
    centred = x - np.mean(x, axis=-1, keepdims=True, dtype=np.float32)
    variance = np.mean(centred * centred, axis=-1, keepdims=True, dtype=np.float32)
    inverse = 1 / np.sqrt(variance + np.float32(node.attrs["eps"]))
    normed, through = centred * inverse, g * t.weight(node.weights[0]) if node.weights else g
    through = through - through.mean(axis=-1, keepdims=True)
    return ((through - normed * np.mean(through * normed, axis=-1, keepdims=True)) * inverse,)


def _from_match_rms(t: Tape, node: Node, g: Floats, value: Floats, kept: Any, x: Floats, y: Floats) -> Back:
    """value = x * size / own, where size is y's root mean square and own x's, or the least that it counts as."""
    least = np.float32(node.attrs["least"])
    size = np.sqrt(np.mean(y * y, axis=-1)).reshape(len(y), *[1] * (x.ndim - 1))
    square = np.mean(x * x, axis=-1, keepdims=True)
    own = np.sqrt(np.maximum(square, least))
    along = (g * x).sum(axis=-1, keepdims=True)
    through = np.where(square > least, along / (square * x.shape[-1]), np.float32(0))
    ratio = (along / own).reshape(len(y), -1).sum(axis=-1, keepdims=True)
    flat = np.maximum(size.reshape(len(y), 1), np.float32(1e-30))
    return (g - x * through) * (size / own), ratio * y / (flat * np.float32(y.shape[-1]))


def _from_gaussian_top_k(t: Tape, node: Node, g: Floats, value: Floats, kept: Any, x: Floats) -> Back:
    through = np.where(value > 0, g, np.float32(0))
    above = x - x.mean(axis=-1, keepdims=True)
    deviation = np.sqrt(np.mean(above * above, axis=-1, keepdims=True))
    steps = np.float32(node.attrs["deviations"]) * above / np.maximum(deviation, np.float32(1e-30))
    return (through - through.mean(axis=-1, keepdims=True) * (1 + steps),)


def _from_matmul(t: Tape, node: Node, g: Floats, value: Floats, kept: Any, x: Floats) -> Back:
    return (native.product(g, np.atleast_2d(t.weight(node.weights[0]))),)


def _from_experts_matmul(
    t: Tape, node: Node, g: Floats, value: Floats, kept: Any, x: Floats, ids: Ids
) -> Back:
    weight, back = t.weight(node.weights[0]), np.zeros_like(x)
    for expert in np.unique(ids):
        token, place = np.nonzero(ids == expert)
        part = native.product(g[token, place], weight[expert])
        if x.ndim == 3:
            back[token, place] = part
        else:
            back[token] += part  # an expert is chosen once by a token
    return back, None


def _from_experts_scale(
    t: Tape, node: Node, g: Floats, value: Floats, kept: Any, y: Floats, ids: Ids
) -> Back:
    return g * t.weight(node.weights[0])[ids][..., None], None


def _from_route(t: Tape, node: Node, g: Floats, value: Floats, kept: Any, logits: Floats, ids: Ids) -> Back:
    if node.attrs["gating"] == "sparse_mixer":
        return _from_sparse_mixer(node, g, logits, ids), None
    by_softmax = node.attrs["gating"] == "softmax"
    gates = softmax(logits) if by_softmax else sigmoid(logits)
    place = ids.astype(np.int64)
    chosen = np.take_along_axis(gates, place, axis=-1)
    g = g * np.float32(node.attrs["scale"])
    if node.attrs["normalize"]:
        total = chosen.sum(axis=-1, keepdims=True)
        share = chosen / total
        g = (g - (g * share).sum(axis=-1, keepdims=True)) / total
    all_gates = np.zeros_like(gates)
    np.put_along_axis(all_gates, place, g, axis=-1)
    if by_softmax:
        return gates * (all_gates - (all_gates * gates).sum(axis=-1, keepdims=True)), None
    return all_gates * gates * (1 - gates), None


def _from_sparse_mixer(node: Node, g: Floats, logits: Floats, ids: Ids) -> Floats:
    gates = sparse_mixer(logits, ids, node.attrs["margin"])  # [T, k, E]
    place = ids.astype(np.int64)[..., None]
    chosen = np.take_along_axis(gates, place, axis=-1)
    g = g * np.float32(node.attrs["scale"])
    if node.attrs["normalize"]:
        total = chosen[..., 0].sum(axis=-1, keepdims=True)
        g = (g - (g * chosen[..., 0] / total).sum(axis=-1, keepdims=True)) / total
    back = -chosen * gates
    np.put_along_axis(back, place, np.take_along_axis(back, place, axis=-1) + chosen, axis=-1)
    return np.asarray((g[..., None] * back).sum(axis=1))


def _from_experts_sum(
    t: Tape, node: Node, g: Floats, value: Floats, kept: Any, y: Floats, weights: Floats
) -> Back:
    return g[:, None, :] * weights[..., None], (g[:, None, :] * y).sum(axis=-1)


def _from_rope(t: Tape, node: Node, g: Floats, value: Floats, kept: Any, x: Floats) -> Back:
    at = node.attrs
    back = np.negative(at["frequencies"], dtype=np.float64)  # the turn undone; the growth stays
    return (OPS[Op.ROPE](t, _with(node, frequencies=tuple(back)), g),)


def _with(node: Node, **attrs: Any) -> Node:
    return Node(node.op, node.inputs, node.weights, {**node.attrs, **attrs}, node.label)


def _from_arch_scale(t: Tape, node: Node, g: Floats, value: Floats, kept: Any, y: Floats) -> Back:
    return (OPS[Op.ARCH_SCALE](t, node, g),)


def _from_scale(t: Tape, node: Node, g: Floats, value: Floats, kept: Any, y: Floats) -> Back:
    return (g * t.weight(node.weights[0]),)


def _from_split(t: Tape, node: Node, g: Floats, value: Floats, kept: Any, x: Floats) -> Back:
    back, span = np.zeros_like(x), slice(node.attrs["start"], node.attrs["stop"])
    if group := node.attrs.get("group"):
        parts = back.reshape(*x.shape[:-1], -1, group)
        parts[..., span] = g.reshape(*parts.shape[:-1], -1)
    else:
        back[..., span] = g
    return (back,)


def _from_concat(t: Tape, node: Node, g: Floats, value: Floats, kept: Any, a: Floats, b: Floats) -> Back:
    return g[..., : a.shape[-1]], g[..., a.shape[-1] :]


def _from_mul(t: Tape, node: Node, g: Floats, value: Floats, kept: Any, a: Floats, b: Floats) -> Back:
    def like(x: Floats, back: Array) -> Array:
        return back.sum(axis=-1, keepdims=True) if x.shape[-1] == 1 != back.shape[-1] else back

    return like(a, g * b), like(b, g * a)


def _silu_gate(x: Floats) -> Floats:
    """1 + exp(-x), in one array; infinite where the sigmoid is 0."""
    with np.errstate(over="ignore"):
        gate = np.exp(np.negative(x))
    gate += np.float32(1)
    return np.asarray(gate)


def _from_silu(t: Tape, node: Node, g: Floats, value: Floats, kept: Any, x: Floats) -> Back:
    s = _silu_gate(x)
    np.reciprocal(s, out=s)
    back = np.subtract(np.float32(1), s)  # s + value (1 - s)
    back *= value
    back += s
    back *= g
    return (back,)


def _from_gelu(t: Tape, node: Node, g: Floats, value: Floats, kept: Any, x: Floats) -> Back:
    if node.attrs["approximate"] == "tanh":
        root, cubic = np.float32(np.sqrt(2 / np.pi)), np.float32(0.044715)
        bent = np.tanh(root * (x + cubic * x * x * x))
        slope = root * (1 + 3 * cubic * x * x)
        return (g * np.float32(0.5) * (1 + bent + x * (1 - bent * bent) * slope),)
    density = np.exp(np.float32(-0.5) * x * x) * np.float32(1 / np.sqrt(2 * np.pi))
    share = np.where(np.abs(x) > 1e-6, value / np.where(x == 0, 1, x), np.float32(0.5))  # value = x * share
    return (g * (share + x * density),)


def _from_xielu(t: Tape, node: Node, g: Floats, value: Floats, kept: Any, x: Floats) -> Back:
    alpha_p, alpha_n, beta, eps = (
        np.float32(node.attrs[name]) for name in ("alpha_p", "alpha_n", "beta", "eps")
    )
    below = alpha_n * (np.where(x < eps, np.exp(np.minimum(x, eps)), np.float32(0)) - 1)
    return (g * (np.where(x > 0, 2 * alpha_p * x, below) + beta),)


def _from_short_conv(t: Tape, node: Node, g: Floats, value: Floats, kept: Any, x: Floats) -> Back:
    return (from_convolved(g, t.weight(node.weights[0]), t.windows),)


def _from_time_step(t: Tape, node: Node, g: Floats, value: Floats, kept: Any, x: Floats) -> Back:
    x = x + t.weight(node.weights[0])
    dt = np.logaddexp(x, np.float32(0))
    free = (dt >= np.float32(node.attrs["low"])) & (dt <= np.float32(node.attrs["high"]))
    return (np.where(free, g * sigmoid(x), np.float32(0)),)


def _from_gated_delta(t: Tape, node: Node, g: Floats, value: Floats, kept: Any, *inputs: Floats) -> Back:
    q, k, v, beta, decay = _delta_scan(t, node, *inputs).backward(g)
    return q, k, v, decay * _decay(t, node), beta


def _from_state_space(
    t: Tape, node: Node, g: Floats, value: Floats, kept: Any, x: Floats, *inputs: Floats
) -> Back:
    c, b, v, rate, decay = _space_scan(t, node, x, *inputs).backward(g)
    return v + g * _skip(t, node), b, c, rate + decay * _decay(t, node)


def _from_clamp(t: Tape, node: Node, g: Floats, value: Floats, kept: Any, x: Floats) -> Back:
    return (np.where(value == x, g, np.float32(0)),)


def _same(t: Tape, node: Node, g: Floats, value: Floats, kept: Any, *inputs: Array) -> Back:
    return (g,)


def _nothing(t: Tape, node: Node, g: Floats, value: Floats, kept: Any, *inputs: Array) -> Back:
    return ()


_BACKWARD: Mapping[Op, Callable[..., Back]] = {
    Op.TOKENS: _nothing,
    Op.HIDDEN: _nothing,
    Op.POSITIONS: _nothing,
    Op.EMBED: _nothing,
    Op.EMBED_SCALE: _nothing,
    Op.TOP_K: _nothing,
    Op.ALL_EXPERTS: _nothing,
    Op.RMS_NORM: _from_rms_norm,
    Op.LAYER_NORM: _from_layer_norm,
    Op.MATCH_RMS: _from_match_rms,
    Op.GAUSSIAN_TOP_K: _from_gaussian_top_k,
    Op.CHANNEL_SCALE: _from_scale,
    Op.MATMUL: _from_matmul,
    Op.WEIGHT_SCALE: _from_scale,
    Op.DORA_SCALE: _from_scale,
    Op.BIAS: _same,
    Op.ARCH_SCALE: _from_arch_scale,
    Op.EXPERTS_MATMUL: _from_experts_matmul,
    Op.EXPERTS_WEIGHT_SCALE: _from_experts_scale,
    Op.EXPERTS_BIAS: _same,
    Op.ROUTE: _from_route,
    Op.EXPERTS_SUM: _from_experts_sum,
    Op.ROPE: _from_rope,
    Op.POSITION_SCALE: lambda t, node, g, value, kept, x: (OPS[Op.POSITION_SCALE](t, node, g),),
    Op.ATTENTION: _from_attention,
    Op.SHORT_CONV: _from_short_conv,
    Op.TIME_STEP: _from_time_step,
    Op.GATED_DELTA: _from_gated_delta,
    Op.STATE_SPACE: _from_state_space,
    Op.SPLIT: _from_split,
    Op.CONCAT: _from_concat,
    Op.RESHAPE: lambda t, node, g, value, kept, x: (g.reshape(x.shape),),
    Op.ADD: lambda t, node, g, value, kept, a, b: (g, g),
    Op.MUL: _from_mul,
    Op.SILU: _from_silu,
    Op.SIGMOID: lambda t, node, g, value, kept, x: (g * value * (1 - value),),
    Op.GELU: _from_gelu,
    Op.RELU: lambda t, node, g, value, kept, x: (np.where(x > 0, g, np.float32(0)),),
    Op.TANH: lambda t, node, g, value, kept, x: (g * (1 - value * value),),
    Op.SOFTPLUS: lambda t, node, g, value, kept, x: (g * sigmoid(x),),
    Op.XIELU: _from_xielu,
    Op.SOFT_CAP: lambda t, node, g, value, kept, x: (
        g * (1 - np.square(value / np.float32(node.attrs["cap"]))),
    ),
    Op.CLAMP: _from_clamp,
    Op.SHIFT: _same,
    Op.LAST: _same,
}

#: Ops whose backward rule needs neither their inputs nor their value.
_BLIND = {Op.ADD, Op.BIAS, Op.SHIFT, Op.LAST, Op.WEIGHT_SCALE, Op.DORA_SCALE, Op.ARCH_SCALE, Op.CHANNEL_SCALE}
#: Ops whose backward rule needs their value, or what they kept.
_OWN_VALUE = {Op.ATTENTION, Op.SILU, Op.SIGMOID, Op.GELU, Op.TANH, Op.SOFT_CAP, Op.CLAMP, Op.GAUSSIAN_TOP_K}
