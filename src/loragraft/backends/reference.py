"""The reference backend: NumPy, float32, one short function for each op. It defines what every node means."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from loragraft.backends.activations import round_nvfp4, round_q8
from loragraft.backends.base import Backend, Floats, Ids, Options, Session, Weights, vocabulary_of
from loragraft.formats.source import TensorSource
from loragraft.graph.ops import Graph, Node, Op
from loragraft.graph.spec import verify
from loragraft.quants import reference as quants
from loragraft.quants.types import F32

Array = npt.NDArray[Any]
Run = Callable[..., Array]
"""(session, node, *inputs) -> value"""


def dequantized(source: TensorSource | Floats) -> Floats:
    """A whole tensor in float32, without any per-tensor scale."""
    if isinstance(source, TensorSource):
        return quants.dequantize(source.rows(0, source.n_rows), source.type).reshape(source.shape)
    return np.asarray(source, dtype=np.float32)


class ReferenceBackend(Backend):
    """Weights are dequantized to float32 at their first use and kept: meant for small models and for comparisons."""

    name = "reference"

    def open(self, graph: Graph, weights: Weights, options: Options | None = None) -> Session:
        options = options or Options()
        if not options.unchecked:
            verify(graph)
        return ReferenceSession(graph, weights, options)


class ReferenceSession(Session):
    """A sequence and its key-value cache, float32 [n_past, kv_heads, head_dim] per attention layer."""

    def __init__(self, graph: Graph, weights: Weights, options: Options) -> None:
        super().__init__(vocabulary_of(graph), options.context)
        self._graph = graph
        self._source = weights
        self._activations = options.activations
        self._dense: dict[str, Floats] = {}
        self._keys: dict[int, Floats] = {}
        self._values: dict[int, Floats] = {}
        self.last_only = False
        self.observer: Callable[[int, list[Array]], None] | None = None
        """Called after every node with its index and all values so far; `check` looks at linears with it."""

    def weight(self, name: str) -> Floats:
        """The tensor `name` in float32."""
        if name not in self._dense:
            self._dense[name] = dequantized(self._source[name])
        return self._dense[name]

    def rounded(self, node: Node, x: Floats, scale_rows: Ids | None = None) -> Floats:
        """The input of a product as `Options.activations` has it: as it is where the weight is stored as floats, and
        under "auto". `scale_rows` [T, k] picks each row's input scale where the experts have their own."""
        source = self._source[node.weights[0]]
        kind = source.type if isinstance(source, TensorSource) else F32
        if kind.is_float or self._activations in ("auto", "f32"):
            return x
        if self._activations == "q8":
            return round_q8(x)
        if kind.name != "NVFP4":
            return x
        if len(node.weights) == 1:
            return round_nvfp4(x, None)
        scale = self.weight(node.weights[1])
        return round_nvfp4(x, scale if scale_rows is None else scale[scale_rows][..., None])

    def extend(self, layer: int, keys: Floats, values: Floats) -> tuple[Floats, Floats]:
        """Append to the cache of `layer`; returns all of it."""
        if layer in self._keys:
            keys = np.concatenate([self._keys[layer], keys])
            values = np.concatenate([self._values[layer], values])
        self._keys[layer], self._values[layer] = keys, values
        return keys, values

    def _rewind(self, n_past: int) -> None:
        self._keys = {layer: keys[:n_past] for layer, keys in self._keys.items()}
        self._values = {layer: values[:n_past] for layer, values in self._values.items()}

    def _append(self, ids: Ids, last_only: bool) -> Floats:
        self.last_only = last_only
        values: list[Array] = []
        for node in self._graph.nodes:
            inputs = [values[source] for source in node.inputs]
            values.append(ids if node.op is Op.TOKENS else OPS[node.op](self, node, *inputs))
            if self.observer is not None:
                self.observer(len(values) - 1, values)
        self.n_past += len(ids)
        logits: Floats = values[self._graph.output]
        return logits


def _embed(s: ReferenceSession, node: Node, ids: Ids) -> Array:
    return s.weight(node.weights[0])[ids]


def _embed_lora(s: ReferenceSession, node: Node, x: Floats, ids: Ids) -> Array:
    a, b = (s.weight(name) for name in node.weights)
    return x + np.float32(node.attrs["scale"]) * (b[ids] @ a)


def _scale(s: ReferenceSession, node: Node, y: Floats) -> Array:
    return y * s.weight(node.weights[0])


def _arch_scale(s: ReferenceSession, node: Node, y: Floats) -> Array:
    return y * (s.weight(node.weights[0]) if node.weights else np.float32(node.attrs["value"]))


def _rms_norm(s: ReferenceSession, node: Node, x: Floats) -> Array:
    w = s.weight(node.weights[0])
    groups = x.reshape(*x.shape[:-1], -1, len(w))
    mean_square = np.mean(groups * groups, axis=-1, keepdims=True, dtype=np.float32)
    normed = groups / np.sqrt(mean_square + np.float32(node.attrs["eps"])) * w
    return normed.reshape(x.shape)


def _layer_norm(s: ReferenceSession, node: Node, x: Floats) -> Array:
    centred = x - np.mean(x, axis=-1, keepdims=True, dtype=np.float32)
    variance = np.mean(centred * centred, axis=-1, keepdims=True, dtype=np.float32)
    y = centred / np.sqrt(variance + np.float32(node.attrs["eps"])) * s.weight(node.weights[0])
    return y + s.weight(node.weights[1]) if len(node.weights) > 1 else y


def _matmul(s: ReferenceSession, node: Node, x: Floats) -> Array:
    return s.rounded(node, x) @ np.atleast_2d(s.weight(node.weights[0])).T


def _lora(s: ReferenceSession, node: Node, y: Floats, x: Floats) -> Array:
    a, b = (s.weight(name) for name in node.weights)
    return y + np.float32(node.attrs["scale"]) * ((x @ a.T) @ b.T)


def _dora_scale(s: ReferenceSession, node: Node, y: Floats) -> Array:
    return y * s.weight(node.weights[0])


def _bias(s: ReferenceSession, node: Node, y: Floats) -> Array:
    return y + s.weight(node.weights[0])


def _each(x: Floats, ids: Ids) -> Array:
    """The input of every chosen expert: [T, k, in] from [T, in] or [T, k, in]."""
    return np.broadcast_to(x[:, None, :] if x.ndim == 2 else x, (*ids.shape, x.shape[-1]))


def _per_expert(weight: Floats, x: Floats, ids: Ids) -> Array:
    """y[t, j] = weight[ids[t, j]] x[t, j]: [T, k, out] for weight [E, out, in] and x [T, in] or [T, k, in]."""
    x = _each(x, ids)
    y = np.empty((*ids.shape, weight.shape[1]), dtype=np.float32)
    for expert in np.unique(ids):
        chosen = ids == expert
        y[chosen] = x[chosen] @ weight[expert].T
    return y


def _experts_matmul(s: ReferenceSession, node: Node, x: Floats, ids: Ids) -> Array:
    return _per_expert(s.weight(node.weights[0]), s.rounded(node, _each(x, ids), ids), ids)


def _experts_scale(s: ReferenceSession, node: Node, y: Floats, ids: Ids) -> Array:
    return y * s.weight(node.weights[0])[ids][..., None]


def _experts_lora(s: ReferenceSession, node: Node, y: Floats, x: Floats, ids: Ids) -> Array:
    a, b = (s.weight(name) for name in node.weights)
    return y + np.float32(node.attrs["scale"]) * _per_expert(b, _per_expert(a, x, ids), ids)


def _experts_dora_scale(s: ReferenceSession, node: Node, y: Floats, ids: Ids) -> Array:
    return y * s.weight(node.weights[0])[ids]


def _experts_bias(s: ReferenceSession, node: Node, y: Floats, ids: Ids) -> Array:
    return y + s.weight(node.weights[0])[ids]


def _top_k(s: ReferenceSession, node: Node, logits: Floats) -> Array:
    best = np.argsort(-logits, axis=-1, kind="stable")[:, : node.attrs["k"]]
    return best.astype(np.int32)


def _softmax(x: Floats) -> Array:
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def _route(s: ReferenceSession, node: Node, logits: Floats, ids: Ids) -> Array:
    gates = _softmax(logits) if node.attrs["gating"] == "softmax" else _sigmoid(logits)
    chosen = np.take_along_axis(gates, ids.astype(np.int64), axis=-1)
    if node.attrs["normalize"]:
        chosen = chosen / chosen.sum(axis=-1, keepdims=True)
    return chosen * np.float32(node.attrs["scale"])


def _experts_sum(s: ReferenceSession, node: Node, y: Floats, weights: Floats) -> Array:
    return np.asarray((y * weights[..., None]).sum(axis=1))


def _rope(s: ReferenceSession, node: Node, x: Floats) -> Array:
    at = node.attrs
    frequencies = np.asarray(at["frequencies"], dtype=np.float64)
    if node.weights:
        frequencies = frequencies / s.weight(node.weights[0])
    angles = np.arange(s.n_past, s.n_past + len(x))[:, None, None] * frequencies  # [T, 1, rotary / 2]
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


def _attention(s: ReferenceSession, node: Node, q: Floats, k: Floats, v: Floats) -> Array:
    at = node.attrs
    tokens, kv_heads, head_dim = len(q), at["kv_heads"], at["head_dim"]
    value_dim, softcap = at.get("value_dim") or head_dim, at.get("softcap")
    keys, values = s.extend(
        at["layer"], k.reshape(tokens, kv_heads, head_dim), v.reshape(tokens, kv_heads, value_dim)
    )
    here = np.arange(s.n_past, s.n_past + tokens)[:, None]
    there = np.arange(len(keys))[None, :]
    seen = there <= here
    if at["window"] is not None:
        seen &= there > here - at["window"]
    # Query heads in groups that share a key-value head: [kv_heads, group, T, head_dim].
    grouped = q.reshape(tokens, kv_heads, -1, head_dim).transpose(1, 2, 0, 3)
    scores = grouped @ keys.transpose(1, 2, 0)[:, None] * np.float32(at["scale"])
    if softcap is not None:
        scores = _soft_cap(scores, softcap)
    scores = np.where(seen, scores, np.float32(-np.inf))
    if node.weights:
        sinks = s.weight(node.weights[0]).reshape(kv_heads, -1, 1, 1)
        scores = np.concatenate([scores, np.broadcast_to(sinks, (*scores.shape[:-1], 1))], axis=-1)
    mixed = _softmax(scores)[..., : len(keys)] @ values.transpose(1, 0, 2)[:, None]
    return mixed.transpose(2, 0, 1, 3).reshape(tokens, -1)


def _soft_cap(x: Floats, cap: float) -> Array:
    return np.asarray(np.float32(cap) * np.tanh(x / np.float32(cap)))


def _split(s: ReferenceSession, node: Node, x: Floats) -> Array:
    return x[..., node.attrs["start"] : node.attrs["stop"]]


def _add(s: ReferenceSession, node: Node, a: Floats, b: Floats) -> Array:
    return a + b


def _mul(s: ReferenceSession, node: Node, a: Floats, b: Floats) -> Array:
    return a * b


def _sigmoid(x: Floats) -> Array:
    # exp of a non-positive number only: no overflow for large negative x.
    small = np.exp(-np.abs(x))
    return np.asarray(np.where(x >= 0, np.float32(1), small) / (1 + small))


def _silu(s: ReferenceSession, node: Node, x: Floats) -> Array:
    return x * _sigmoid(x)


_erf = np.vectorize(math.erf, otypes=[np.float32])  # NumPy has none


def _gelu(s: ReferenceSession, node: Node, x: Floats) -> Array:
    if node.attrs["approximate"] == "tanh":
        inner = np.float32(np.sqrt(2 / np.pi)) * (x + np.float32(0.044715) * x * x * x)
        bell = np.tanh(inner)
    else:
        bell = _erf(x * np.float32(np.sqrt(0.5)))
    return np.asarray(np.float32(0.5) * x * (1 + bell))


def _last(s: ReferenceSession, node: Node, x: Floats) -> Array:
    return x[-1:] if s.last_only else x


OPS: Mapping[Op, Run] = {
    Op.EMBED: _embed,
    Op.EMBED_SCALE: _scale,
    Op.EMBED_LORA: _embed_lora,
    Op.RMS_NORM: _rms_norm,
    Op.LAYER_NORM: _layer_norm,
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
    Op.TOP_K: _top_k,
    Op.ROUTE: _route,
    Op.EXPERTS_SUM: _experts_sum,
    Op.ROPE: _rope,
    Op.ATTENTION: _attention,
    Op.SPLIT: _split,
    Op.ADD: _add,
    Op.MUL: _mul,
    Op.SILU: _silu,
    Op.SIGMOID: lambda s, node, x: _sigmoid(x),
    Op.GELU: _gelu,
    Op.LAST: _last,
}
