"""The native backend's nodes beside linear layers: one short function each, what it computes being defined by
`backends.reference`. What works on a few numbers per token (routing, slices) is NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from loragraft import _native
from loragraft.backends.batch import Floats, Ids
from loragraft.errors import GraphError, UnsupportedError
from loragraft.graph.ops import Graph, Node, Op

engine = _native.engine
Array = npt.NDArray[Any]


class Run:
    """What the operations of one session share: threads, buffers, positions, the cache of keys and values."""

    def __init__(
        self, floats: Callable[[str], Floats], matrix: Callable[[str], Any], pool: engine.ThreadPool
    ) -> None:
        self.pool = pool
        self.floats = floats
        self.matrix = matrix
        self.ids = np.empty(0, np.int32)
        self.n_past = 0
        self.last_only = False
        self._free: dict[tuple[int, ...], list[Floats]] = {}
        self._caches: dict[int, Any] = {}
        self._angles: dict[tuple[Any, ...], tuple[Floats, Floats]] = {}

    def begin(self, ids: Ids, n_past: int, last_only: bool) -> None:
        if len(ids) != len(self.ids):
            self._free.clear()  # buffers of another number of tokens fit no longer
        self.ids, self.n_past, self.last_only = ids, n_past, last_only

    def take(self, *shape: int) -> Floats:
        """A buffer, contents undefined; one given back before if there is one of this shape."""
        free = self._free.get(shape)
        return free.pop() if free else np.empty(shape, np.float32)

    def give(self, value: Array) -> None:
        """Take a value back that nobody reads any more. What is no whole float buffer (ids, views), Python keeps."""
        if value.base is None and value.dtype == np.float32 and value.flags.c_contiguous:
            self._free.setdefault(value.shape, []).append(value)

    def gated(self, gate: Floats, up: Floats) -> Floats:
        if gate.shape != up.shape:
            return np.multiply(_silu(self, None, gate), up)
        y = self.take(*gate.shape)
        engine.silu_mul(self.pool, gate, up, y)
        return y

    def round_nvfp4(self, x: Floats, ids: Ids | None, scale: Floats | None) -> Floats:
        """x as an NVFP4 product sees it; one row for each token, or with experts for each token and expert."""
        if ids is not None and len(x) != ids.size:
            x = np.repeat(x, ids.size // len(x), axis=0)
        scales = np.zeros(len(x), np.float32)
        if scale is not None:
            scales[:] = scale[0] if ids is None else scale[ids.reshape(-1)]
        y = np.empty_like(x)
        engine.round_nvfp4(self.pool, x, y, scales)
        return y

    def cache(self, layer: int, kv_heads: int, head_dim: int) -> Any:
        if layer not in self._caches:
            self._caches[layer] = engine.LayerCache(kv_heads, head_dim)
        return self._caches[layer]

    def angles(
        self, frequencies: tuple[float, ...], factors: str | None, magnitude: float
    ) -> tuple[Floats, Floats]:
        """Cosines and sines [tokens, rotary / 2] of this batch's positions."""
        key = (frequencies, factors, magnitude)
        end = self.n_past + len(self.ids)
        if key not in self._angles or len(self._angles[key][0]) < end:
            per_step = np.asarray(frequencies, np.float64)
            if factors is not None:
                per_step = per_step / self.floats(factors)
            angle = np.arange((end + 1023) // 1024 * 1024)[:, None] * per_step
            self._angles[key] = (
                (np.cos(angle) * magnitude).astype(np.float32),
                (np.sin(angle) * magnitude).astype(np.float32),
            )
        cosines, sines = self._angles[key]
        return cosines[self.n_past : end], sines[self.n_past : end]


def _tokens(run: Run, node: Node) -> Array:
    return run.ids


def _positions(run: Run, node: Node) -> Array:
    end, most = run.n_past + len(run.ids), node.attrs["most"]
    if end > most:
        raise GraphError(
            "positions", "the model has no such position", found=end - 1, expected=f"up to {most - 1}"
        )
    return np.arange(run.n_past, end, dtype=np.int32)


def _embed(run: Run, node: Node, ids: Ids) -> Floats:
    (name,) = node.weights
    weight = run.matrix(name)
    y = run.take(len(ids), weight.cols)
    weight.gather(run.pool, ids, y)
    return y


def _embed_scale(run: Run, node: Node, x: Floats) -> Floats:
    return x * run.floats(node.weights[0])


def _embed_lora(run: Run, node: Node, x: Floats, ids: Ids) -> Floats:
    a, b = (run.floats(name) for name in node.weights)
    return x + np.float32(node.attrs["scale"]) * (b[ids] @ a)


def _arch_scale(run: Run, node: Node, x: Floats) -> Floats:
    return x * (run.floats(node.weights[0]) if node.weights else np.float32(node.attrs["value"]))


def _rms_norm(run: Run, node: Node, x: Floats) -> Floats:
    y = run.take(*x.shape)
    weight = run.floats(node.weights[0]) if node.weights else np.ones(node.attrs["group"], np.float32)
    engine.rms_norm(run.pool, x, weight, y, node.attrs["eps"])
    return y


def _layer_norm(run: Run, node: Node, x: Floats) -> Floats:
    y = run.take(*x.shape)
    bias = run.floats(node.weights[1]) if len(node.weights) > 1 else None
    engine.layer_norm(run.pool, x, run.floats(node.weights[0]), bias, y, node.attrs["eps"])
    return y


def _rope(run: Run, node: Node, x: Floats) -> Floats:
    at = node.attrs
    factors = node.weights[0] if node.weights else None
    cosines, sines = run.angles(at["frequencies"], factors, at["magnitude"])
    y = run.take(*x.shape)
    engine.rope(run.pool, x, y, cosines, sines, at["heads"], at["pairs"] == "adjacent")
    return y


def _attention(run: Run, node: Node, q: Floats, k: Floats, v: Floats) -> Floats:
    at = node.attrs
    y = run.take(*q.shape)
    cache = run.cache(at["layer"], at["kv_heads"], at["head_dim"])
    engine.attention(run.pool, cache, q, k, v, y, run.n_past, at["heads"], at["scale"], at["window"] or 0)
    return y


def check_supported(graph: Graph) -> None:
    """Raises UnsupportedError for a node whose attributes no kernel here computes."""
    for node in graph.nodes:
        if node.op is not Op.ATTENTION:
            continue
        missing = {
            "a soft cap": node.attrs.get("softcap"),
            "sinks": node.weights,
            "values of another size than keys": node.attrs.get("value_dim"),
        }
        for what, found in missing.items():
            if found:
                raise UnsupportedError(
                    node.label, f"no native kernel for attention with {what}", hint="use backend reference"
                )


def _top_k(run: Run, node: Node, logits: Floats) -> Array:
    order = np.argsort(-logits, axis=-1, kind="stable")
    return np.ascontiguousarray(order[..., : node.attrs["k"]], dtype=np.int32)


def _route(run: Run, node: Node, logits: Floats, ids: Ids) -> Floats:
    if node.attrs["gating"] == "softmax":
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
    else:
        weights = 1.0 / (1.0 + np.exp(-logits))
    chosen = np.take_along_axis(weights, ids, axis=-1)
    if node.attrs["normalize"]:
        chosen = chosen / chosen.sum(axis=-1, keepdims=True)
    return np.asarray(chosen * np.float32(node.attrs["scale"]), np.float32)


def _experts_sum(run: Run, node: Node, y: Floats, weights: Floats) -> Floats:
    return np.asarray(np.matmul(weights[:, None, :], y)[:, 0, :], np.float32)


def _split(run: Run, node: Node, x: Floats) -> Floats:
    return np.ascontiguousarray(x[..., node.attrs["start"] : node.attrs["stop"]])


def _add(run: Run, node: Node, a: Floats, b: Floats) -> Floats:
    y = run.take(*a.shape)
    engine.add(run.pool, a, b, y)
    return y


def _mul(run: Run, node: Node, a: Floats, b: Floats) -> Floats:
    if a.shape != b.shape:
        return np.multiply(a, b)
    y = run.take(*a.shape)
    engine.mul(run.pool, a, b, y)
    return y


def _silu(run: Run, node: Node | None, x: Floats) -> Floats:
    y = run.take(*x.shape)
    engine.silu(run.pool, x, y)
    return y


def _sigmoid(run: Run, node: Node, x: Floats) -> Floats:
    y = run.take(*x.shape)
    engine.sigmoid(run.pool, x, y)
    return y


def _gelu(run: Run, node: Node, x: Floats) -> Floats:
    y = run.take(*x.shape)
    kernel = engine.gelu_tanh if node.attrs["approximate"] == "tanh" else engine.gelu_erf
    kernel(run.pool, x, y)
    return y


def _relu(run: Run, node: Node, x: Floats) -> Floats:
    return _clamped(run, x, 0.0, None)


def _clamp(run: Run, node: Node, x: Floats) -> Floats:
    return _clamped(run, x, node.attrs["low"], node.attrs["high"])


def _clamped(run: Run, x: Floats, low: float | None, high: float | None) -> Floats:
    y = run.take(*x.shape)
    engine.clamp(run.pool, x, y, -np.inf if low is None else low, np.inf if high is None else high)
    return y


def _tanh(run: Run, node: Node, x: Floats) -> Floats:
    y = run.take(*x.shape)
    engine.soft_cap(run.pool, x, y, 1.0)
    return y


def _soft_cap(run: Run, node: Node, x: Floats) -> Floats:
    y = run.take(*x.shape)
    engine.soft_cap(run.pool, x, y, node.attrs["cap"])
    return y


def _softplus(run: Run, node: Node, x: Floats) -> Floats:
    y = run.take(*x.shape)
    engine.softplus(run.pool, x, y)
    return y


def _shift(run: Run, node: Node, x: Floats) -> Floats:
    return x + np.float32(node.attrs["value"])


def _last(run: Run, node: Node, x: Floats) -> Floats:
    return x[-1:].copy() if run.last_only else x.copy()


OPS: dict[Op, Callable[..., Array]] = {
    Op.TOKENS: _tokens,
    Op.POSITIONS: _positions,
    Op.EMBED: _embed,
    Op.EMBED_SCALE: _embed_scale,
    Op.EMBED_LORA: _embed_lora,
    Op.RMS_NORM: _rms_norm,
    Op.LAYER_NORM: _layer_norm,
    Op.ARCH_SCALE: _arch_scale,
    Op.ROPE: _rope,
    Op.ATTENTION: _attention,
    Op.TOP_K: _top_k,
    Op.ROUTE: _route,
    Op.EXPERTS_SUM: _experts_sum,
    Op.SPLIT: _split,
    Op.ADD: _add,
    Op.MUL: _mul,
    Op.SILU: _silu,
    Op.SIGMOID: _sigmoid,
    Op.GELU: _gelu,
    Op.RELU: _relu,
    Op.TANH: _tanh,
    Op.SOFTPLUS: _softplus,
    Op.SOFT_CAP: _soft_cap,
    Op.CLAMP: _clamp,
    Op.SHIFT: _shift,
    Op.LAST: _last,
}
