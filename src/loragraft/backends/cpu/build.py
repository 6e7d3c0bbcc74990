"""From a plan to a program of the C++ core: one short function for each kind of step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from loragraft import _native
from loragraft.arrays import Floats
from loragraft.backends.cpu.weights import EngineWeights
from loragraft.backends.plan import EmbedStep, GatedStep, Linear, LinearStep, NodeStep, Plan
from loragraft.backends.program import Options
from loragraft.backends.reference_ops import rope_factors
from loragraft.errors import UnsupportedError
from loragraft.graph.ops import RECURRENT, Graph, Node, Op
from loragraft.graph.spec import value_shapes

engine = _native.engine


@dataclass(frozen=True, slots=True)
class Built:
    """The program, and where its output lies."""

    program: Any
    output: Any


def build(graph: Graph, plan: Plan, weights: EngineWeights, options: Options, rounding: str) -> Built:
    """The program of `plan`. Raises UnsupportedError for what the engine lacks."""
    return _Builder(graph, plan, weights, options, rounding).built()


class _Builder:
    def __init__(
        self, graph: Graph, plan: Plan, weights: EngineWeights, options: Options, rounding: str
    ) -> None:
        self._plan, self.weights = plan, weights
        self.shapes, self._context = value_shapes(graph), options.context
        attention = [node for node in graph.nodes if node.op is Op.ATTENTION]
        self.layers = {node.attrs["layer"]: number for number, node in enumerate(attention)}
        recurrent = [(index, node) for index, node in enumerate(graph.nodes) if node.op in RECURRENT]
        self.states = {(node.op, node.attrs["layer"]): number for number, (_, node) in enumerate(recurrent)}
        kept = options.keys_values
        if kept == "auto":
            kept = "f32" if options.activations == "f32" else "f16"
        self.program = engine.Program(
            options.threads or 0,
            rounding,
            plan.floats,
            [_layer_shape(node) for node in attention],
            [_state_floats(graph, node, self.shapes[index][-1]) for index, node in recurrent],
            kept,
            options.pool_bytes or 0,
        )
        self._tables: dict[tuple[Any, ...], Any] = {}
        self.values = {
            index: engine.Value(
                index, -1 if place.offset is None else place.offset, place.width, place.wanted
            )
            for index, place in plan.places.items()
        }

    def built(self) -> Built:
        for number, step in enumerate(self._plan.steps):
            match step:
                case LinearStep():
                    made = self._linear(step)
                case EmbedStep():
                    made = self._embed(step)
                case GatedStep():
                    made = self.program.binary("silu_mul", *self._of(step.gate, step.up, step.result))
                case NodeStep():
                    made = self._node(step)
            assert made == number
        return Built(self.program, self.values[self._plan.output])

    def _of(self, *nodes: int) -> list[Any]:
        return [self.values[node] for node in nodes]

    def one(self, scale: str | float | None) -> float:
        """A scale that may be a tensor [1]."""
        if isinstance(scale, str):
            return float(self.weights.floats(scale).reshape(-1)[0])
        return 1.0 if scale is None else scale

    def _embed(self, step: EmbedStep) -> int:
        weight = self.weights.matrix(step.weight)
        scale, arch_scale = self.one(step.scale), self.one(step.arch_scale)
        return int(self.program.embed(weight, self.values[step.result], step.by_position, scale, arch_scale))

    def _linear(self, step: LinearStep) -> int:
        ids = None if step.ids is None else self.values[step.ids]
        return int(self.program.linear(self.values[step.x], ids, [self._site(one) for one in step.linears]))

    def _site(self, linear: Linear) -> Any:
        weight = self.weights.packed(linear.weight, self.program.threads)
        return engine.LayerSite(
            weight,
            self.values[linear.result],
            self._flat(linear.scale),
            self._flat(linear.bias),
            self.one(linear.arch_scale),
            self._flat(linear.input_scale),
        )

    def _flat(self, name: str | None) -> Floats | None:
        return None if name is None else self.weights.floats(name).reshape(-1)

    def _node(self, step: NodeStep) -> int:
        try:
            make = NODES[step.node.op]
        except KeyError:
            raise UnsupportedError(
                step.node.label or step.node.op, f"no native step for {step.node.op}"
            ) from None
        return int(make(self, step.node, *self._of(*step.inputs, step.result)))

    def rope_table(self, node: Node) -> Any:
        """One for all nodes that turn alike."""
        at = node.attrs
        key = (at["frequencies"], node.weights, at["magnitude"])
        if key not in self._tables:
            per_position = np.asarray(at["frequencies"], np.float64)
            if factors := rope_factors(node, self._context):
                per_position = per_position / self.weights.floats(factors)
            self._tables[key] = self.program.rope_table(np.ascontiguousarray(per_position), at["magnitude"])
        return self._tables[key]


def _layer_shape(node: Node) -> tuple[int, int, int, int]:
    at = node.attrs
    return at["kv_heads"], at["head_dim"], at.get("value_dim") or at["head_dim"], at["window"] or 0


def _state_floats(graph: Graph, node: Node, width: int) -> int:
    if node.op is Op.SHORT_CONV:
        return width * (graph.tensors[node.weights[0]].shape[1] - 1)
    return int(engine.scan_floats(_heads(node)))


def _heads(node: Node) -> tuple[int, int, int, int, bool]:
    at = node.attrs
    return at["heads"], at["key_heads"], at["key_dim"], at["value_dim"], bool(at.get("tiled"))


def _state(b: _Builder, node: Node) -> int:
    return b.states[node.op, node.attrs["layer"]]


def _short_conv(b: _Builder, node: Node, x: Any, y: Any) -> int:
    weight, *bias = (b.weights.floats(name) for name in node.weights)
    return int(b.program.short_conv(x, y, _state(b, node), weight, bias[0] if bias else None))


def _time_step(b: _Builder, node: Node, x: Any, y: Any) -> int:
    at = node.attrs
    return int(b.program.time_step(x, y, b.weights.floats(node.weights[0]), at["low"], at["high"]))


def _gated_delta(b: _Builder, node: Node, q: Any, k: Any, v: Any, dt: Any, beta: Any, y: Any) -> int:
    decay = b.weights.floats(node.weights[0]).reshape(-1)
    return int(b.program.scan(q, k, v, dt, beta, y, _state(b, node), _heads(node), decay, None))


def _state_space(b: _Builder, node: Node, x: Any, keys: Any, queries: Any, dt: Any, y: Any) -> int:
    decay, skip = (b.weights.floats(name).reshape(-1) for name in node.weights)
    return int(b.program.scan(queries, keys, x, dt, None, y, _state(b, node), _heads(node), decay, skip))


def _rms_norm(b: _Builder, node: Node, x: Any, y: Any) -> int:
    weight = b.weights.floats(node.weights[0]) if node.weights else np.ones(node.attrs["group"], np.float32)
    return int(b.program.rms_norm(x, y, weight.reshape(-1), weight.shape[-1], node.attrs["eps"]))


def _layer_norm(b: _Builder, node: Node, x: Any, y: Any) -> int:
    weights = [b.weights.floats(name) for name in node.weights]
    weight = weights[0] if weights else np.ones(b.shapes[node.inputs[0]][-1], np.float32)
    return int(b.program.layer_norm(x, y, weight, weights[1] if weights[1:] else None, node.attrs["eps"]))


def _arch_scale(b: _Builder, node: Node, x: Any, y: Any) -> int:
    factor = b.one(node.weights[0]) if node.weights else node.attrs["value"]
    return int(b.program.affine(x, y, factor, 0.0))


def _mul(b: _Builder, node: Node, left: Any, right: Any, y: Any) -> int:
    if b.shapes[node.inputs[0]] == b.shapes[node.inputs[1]]:
        return int(b.program.binary("mul", left, right, y))
    return int(b.program.mul_rows(left, right, y))


def _split(b: _Builder, node: Node, x: Any, y: Any) -> int:
    shape = b.shapes[node.inputs[0]]
    parts = int(np.prod(shape, dtype=np.int64)) // (node.attrs.get("group") or shape[-1])
    return int(b.program.split(x, y, parts, node.attrs["start"]))


def _concat(b: _Builder, node: Node, left: Any, right: Any, y: Any) -> int:
    parts = int(np.prod(b.shapes[node.inputs[0]][:-1], dtype=np.int64))
    return int(b.program.concat(left, right, y, parts))


def _top_k(b: _Builder, node: Node, logits: Any, ids: Any) -> int:
    at = node.attrs
    gating, groups = at.get("gating") or "", at.get("groups") or 1
    if not gating and not node.weights and groups == 1:
        return int(b.program.top_k(logits, ids))
    bias = b.weights.floats(node.weights[0]).reshape(-1) if node.weights else None
    used, best = at.get("groups_used") or 1, at.get("group_best") or 1
    return int(b.program.choose(logits, ids, gating, bias, groups, used, best))


def _route(b: _Builder, node: Node, logits: Any, ids: Any, y: Any) -> int:
    at = node.attrs
    margin = at.get("margin") or 0.0
    return int(b.program.route(logits, ids, y, at["gating"], at["normalize"], at["scale"], margin))


def _position_scale(b: _Builder, node: Node, x: Any, y: Any) -> int:
    at = node.attrs
    return int(b.program.position_scale(x, y, at["length"], at["offset"], at["slope"]))


def _xielu(b: _Builder, node: Node, x: Any, y: Any) -> int:
    at = node.attrs
    return int(b.program.xielu(x, y, at["alpha_p"], at["alpha_n"], at["beta"], at["eps"]))


def _match_rms(b: _Builder, node: Node, x: Any, y: Any, to: Any) -> int:
    return int(b.program.match_rms(x, y, to, b.shapes[node.inputs[0]][-1], node.attrs["least"]))


def _gaussian_top_k(b: _Builder, node: Node, x: Any, to: Any) -> int:
    return int(b.program.gaussian_top_k(x, to, b.shapes[node.inputs[0]][-1], node.attrs["deviations"]))


def _rope(b: _Builder, node: Node, x: Any, y: Any) -> int:
    at = node.attrs
    return int(b.program.rope(x, y, b.rope_table(node), at["heads"], at["pairs"] == "adjacent"))


def _attention(b: _Builder, node: Node, q: Any, k: Any, v: Any, y: Any) -> int:
    at = node.attrs
    sinks = b.weights.floats(node.weights[0]) if node.weights else None
    layer, cap = b.layers[at["layer"]], at.get("softcap") or 0.0
    slopes = np.asarray(at["slopes"], np.float32) if at.get("slopes") else None
    chunk = at.get("chunk") or 0
    return int(b.program.attention(q, k, v, y, layer, at["heads"], at["scale"], cap, sinks, slopes, chunk))


def _gelu(b: _Builder, node: Node, x: Any, y: Any) -> int:
    return int(b.program.unary("gelu_tanh" if node.attrs["approximate"] == "tanh" else "gelu_erf", x, y))


def _clamp(b: _Builder, node: Node, x: Any, y: Any) -> int:
    low, high = node.attrs["low"], node.attrs["high"]
    return int(
        b.program.unary("clamp", x, y, -np.inf if low is None else low, np.inf if high is None else high)
    )


def _plain(name: str) -> Callable[..., int]:
    return lambda b, node, x, y: int(b.program.unary(name, x, y))


NODES: dict[Op, Callable[..., int]] = {
    Op.HIDDEN: lambda b, node, y: b.program.hidden(y),
    Op.LAST: lambda b, node, x, y: b.program.last(x, y),
    Op.RMS_NORM: _rms_norm,
    Op.LAYER_NORM: _layer_norm,
    Op.MATCH_RMS: _match_rms,
    Op.GAUSSIAN_TOP_K: _gaussian_top_k,
    Op.CHANNEL_SCALE: lambda b, node, x, y: b.program.channel_scale(x, y, b.weights.floats(node.weights[0])),
    Op.ARCH_SCALE: _arch_scale,
    Op.SHIFT: lambda b, node, x, y: b.program.affine(x, y, 1.0, node.attrs["value"]),
    Op.POSITION_SCALE: _position_scale,
    Op.ROPE: _rope,
    Op.ATTENTION: _attention,
    Op.ALL_EXPERTS: lambda b, node, x, ids: b.program.all_experts(ids),
    Op.TOP_K: _top_k,
    Op.ROUTE: _route,
    Op.EXPERTS_SUM: lambda b, node, y, weights, total: b.program.experts_sum(y, weights, total),
    Op.SHORT_CONV: _short_conv,
    Op.TIME_STEP: _time_step,
    Op.GATED_DELTA: _gated_delta,
    Op.STATE_SPACE: _state_space,
    Op.SPLIT: _split,
    Op.CONCAT: _concat,
    Op.RESHAPE: lambda b, node, x, y: b.program.split(x, y, 1, 0),
    Op.ADD: lambda b, node, left, right, y: b.program.binary("add", left, right, y),
    Op.MUL: _mul,
    Op.SILU: _plain("silu"),
    Op.SIGMOID: _plain("sigmoid"),
    Op.SOFTPLUS: _plain("softplus"),
    Op.GELU: _gelu,
    Op.RELU: lambda b, node, x, y: b.program.unary("clamp", x, y, 0.0, np.inf),
    Op.TANH: lambda b, node, x, y: b.program.unary("soft_cap", x, y, 1.0),
    Op.SOFT_CAP: lambda b, node, x, y: b.program.unary("soft_cap", x, y, node.attrs["cap"]),
    Op.XIELU: _xielu,
    Op.CLAMP: _clamp,
}
