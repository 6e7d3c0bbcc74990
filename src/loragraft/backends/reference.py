"""The reference backend: it walks the graph in NumPy, float32, and so defines what a program computes
(`backends.reference_ops`: what each node does).

A batch is taken apart into the rows of one sequence that share their adapters, one walk for each, in order: what
sequences and adapters do to one another is nothing, by construction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from math import prod

import numpy as np
import numpy.typing as npt

from loragraft.adapters.lora import Adapter
from loragraft.arrays import Array, Floats, Ids
from loragraft.backends.activations import Factor, round_factor, round_nvfp4, round_q8, rounded_factors
from loragraft.backends.batch import AdapterSet, Batch
from loragraft.backends.program import Backend, Options, Program, Weights
from loragraft.backends.reference_ops import OPS
from loragraft.backends.slots import Slots
from loragraft.errors import PoolError, UnsupportedError
from loragraft.formats.source import TensorSource
from loragraft.graph.ops import Graph, Node, Op
from loragraft.graph.spec import narrowed, verify
from loragraft.quants import reference as quants
from loragraft.quants.types import BY_NAME, F32


def dequantized(source: TensorSource | Floats) -> Floats:
    """A whole tensor in float32, without any per-tensor scale."""
    if isinstance(source, TensorSource):
        return quants.dequantize(source.rows(0, source.n_rows), source.type).reshape(source.shape)
    return np.asarray(source, dtype=np.float32)


def evaluate(
    nodes: Sequence[Node], x: Array, given: Mapping[int, Array], weight: Callable[[str], Floats]
) -> Floats:
    """One linear layer, or a part of it, by itself: what `nodes` make of `x`. Each takes the value before it as its
    first input; their other inputs are `given`, by the number of the node that they are the value of. Activations are
    not rounded."""
    own = _Alone(weight)
    for node in nodes:
        x = OPS[node.op](own, node, x, *(given[source] for source in node.inputs[1:]))
    return x


class _Alone:
    """What `evaluate` needs of a pass."""

    def __init__(self, weight: Callable[[str], Floats]) -> None:
        self.weight = weight

    def rounded(self, node: Node, x: Floats, scale_rows: Ids | None = None) -> Floats:
        return x

    def rounded_for(self, a: str, x: Floats) -> Floats:
        return x


class ReferenceBackend(Backend):
    """Weights are dequantized to float32 at their first use and kept: meant for small models and for comparisons."""

    name = "reference"

    def prepare(self, graph: Graph, weights: Weights, options: Options | None = None) -> Program:
        options = options or Options()
        if not options.unchecked:
            verify(graph)
        return ReferenceProgram(graph, weights, options)


@dataclass(slots=True)
class _Sequence:
    """Keys and values, float32 [tokens, kv_heads, head_dim] per attention layer, and the states of recurrent nodes.
    Arrays are never written to: what grows is a new one."""

    keys: dict[int, Floats] = field(default_factory=dict)
    values: dict[int, Floats] = field(default_factory=dict)
    states: dict[tuple[Op, int], Floats] = field(default_factory=dict)

    def copy(self) -> _Sequence:
        return _Sequence(dict(self.keys), dict(self.values), dict(self.states))

    def first(self, length: int) -> _Sequence:
        """States are those of all its tokens, or of none."""
        keys, values = ({layer: a[:length] for layer, a in own.items()} for own in (self.keys, self.values))
        return _Sequence(keys, values, dict(self.states) if length else {})


@dataclass(frozen=True, slots=True)
class _Attached:
    """The graph with some adapters, their tensors, and how A and B are rounded."""

    graph: Graph
    tensors: dict[str, Floats]
    rounded: dict[str, Factor]


class ReferenceProgram(Program):
    """See the module's docstring."""

    def __init__(self, graph: Graph, weights: Weights, options: Options) -> None:
        super().__init__(graph, options)
        self._weights = weights
        self._dense: dict[str, Floats] = {}
        self._rounded = self._rounded_factors(graph)
        self._sequences: dict[int, _Sequence] = {}
        self._numbers = count()
        self._adapters = Slots(graph, weights, unchecked=options.unchecked)
        self._sets: dict[AdapterSet, _Attached] = {}
        self._token_bytes = sum(
            4 * node.attrs["kv_heads"] * (node.attrs["head_dim"] + _value_dim(node))
            for node in graph.nodes
            if node.op is Op.ATTENTION
        )

    def _add(self, adapter: Adapter) -> int:
        return self._adapters.add(adapter)[0]

    def _drop(self, slot: int) -> None:
        self._adapters.drop(slot)
        self._sets = {chosen: it for chosen, it in self._sets.items() if slot not in dict(chosen)}

    def _ready(self, chosen: AdapterSet) -> None:
        self.attached(chosen)

    def _open(self) -> int:
        sequence = next(self._numbers)
        self._sequences[sequence] = _Sequence()
        return sequence

    def _fork(self, sequence: int, length: int) -> int:
        fork = next(self._numbers)
        self._sequences[fork] = self._sequences[sequence].first(length)
        return fork

    def _truncate(self, sequence: int, length: int) -> None:
        self._sequences[sequence] = self._sequences[sequence].first(length)

    def _close(self, sequence: int) -> None:
        del self._sequences[sequence]

    def _forward(self, batch: Batch, hidden: Floats | None) -> Floats:
        self._make_room(len(batch))
        grown = {run.sequence: self._sequences[run.sequence].copy() for run in batch.runs()}
        parts = []
        for run, chosen in batch.segments():
            rows = slice(run.first, run.stop)
            part = _Pass(self, grown[run.sequence], batch.positions[rows], batch.wants[rows], chosen)
            parts.append(part.walk(batch.tokens[rows], None if hidden is None else hidden[rows]))
        self._sequences |= grown
        return np.concatenate(parts)

    def _make_room(self, tokens: int) -> None:
        limit = self.options.pool_bytes
        held = (sum(self._lengths.values()) + tokens) * self._token_bytes
        if limit is not None and held > limit:
            raise PoolError("keys and values", "no room", found=f"{held} bytes", expected=f"up to {limit}")

    def attached(self, chosen: AdapterSet) -> _Attached:
        """The graph with these adapters."""
        if not chosen:
            return _Attached(self.graph, {}, self._rounded)
        if chosen not in self._sets:
            if len(self._sets) >= _KEPT_SETS:
                self._sets.pop(next(iter(self._sets)))
            graph, tensors = self._adapters.attached(chosen)
            rounded = self._rounded_factors(graph)
            for name, factor in rounded.items():
                if name in tensors:
                    tensors[name] = round_factor(tensors[name], factor)
            self._sets[chosen] = _Attached(graph, tensors, rounded)
        return self._sets[chosen]

    def _rounded_factors(self, graph: Graph) -> dict[str, Factor]:
        """See `activations.rounded_factors`."""
        if self.options.activations != "q8":
            return {}
        return rounded_factors(
            graph, lambda weight: not BY_NAME[self.kind(weight)].is_float, self.options.adapter_type
        )

    def weight(self, name: str) -> Floats:
        """The tensor `name` of the base in float32."""
        if name not in self._dense:
            dense = np.ascontiguousarray(dequantized(self._weights[name]))
            factor = self._rounded.get(name)
            self._dense[name] = dense if factor is None else round_factor(dense, factor)
        return self._dense[name]

    def kind(self, name: str) -> str:
        """The type that a weight of the base is stored in."""
        source = self._weights[name]
        return source.type.name if isinstance(source, TensorSource) else F32.name


_KEPT_SETS = 64


def _value_dim(node: Node) -> int:
    return int(node.attrs.get("value_dim") or node.attrs["head_dim"])


class _Pass:
    """Rows of one sequence under one set of adapters (`reference_ops.Pass`)."""

    def __init__(
        self,
        program: ReferenceProgram,
        held: _Sequence,
        positions: Ids,
        wants: npt.NDArray[np.bool_],
        chosen: AdapterSet,
    ) -> None:
        self.positions, self.wants = positions, wants
        self._program = program
        self._held = held
        attached = program.attached(chosen)
        self._graph, self._tensors, self._factors = attached.graph, attached.tensors, attached.rounded
        self.context = program.options.context

    def walk(self, tokens: Ids, hidden: Floats | None) -> Floats:
        values: list[Array] = []
        observer = self._program.observer
        nothing = np.empty((0, self._program.width), np.float32)
        skipped = [False] * len(self._graph.nodes) if self.wants.any() else narrowed(self._graph)
        for node, skip in zip(self._graph.nodes, skipped, strict=True):
            if skip:  # works on the wanted rows alone
                values.append(nothing)
                continue
            inputs = [values[source] for source in node.inputs]
            if node.op is Op.TOKENS:
                values.append(tokens)
                continue
            if node.op is Op.HIDDEN:
                values.append(np.asarray(hidden, np.float32))
                continue
            if observer is not None and node.op in (Op.MATMUL, Op.EXPERTS_MATMUL):
                observer(node.weights[:1], inputs[0], inputs[1] if len(inputs) > 1 else None)
            values.append(OPS[node.op](self, node, *inputs))
        output: Floats = values[self._graph.output]
        return output

    def weight(self, name: str) -> Floats:
        own = self._tensors.get(name)
        return self._program.weight(name) if own is None else own

    def rounded(self, node: Node, x: Floats, scale_rows: Ids | None = None) -> Floats:
        """As it is where the weight is stored as floats, and under "auto". `scale_rows` [T, k] picks each row's input
        scale where the experts have their own."""
        kind, activations = BY_NAME[self._program.kind(node.weights[0])], self._program.options.activations
        if kind.is_float or activations in ("auto", "f32"):
            return x
        if activations == "q8":
            return round_q8(x)
        if kind.name != "NVFP4":
            return x
        if len(node.weights) == 1:
            return round_nvfp4(x, None)
        scale = self.weight(node.weights[1])
        return round_nvfp4(x, scale if scale_rows is None else scale[scale_rows][..., None])

    def rounded_for(self, a: str, x: Floats) -> Floats:
        factor = self._factors.get(a)
        return round_q8(x) if factor is not None and factor.bits == 8 else x

    def extend(self, layer: int, keys: Floats, values: Floats) -> tuple[Floats, Floats]:
        held = self._held
        for own, new in ((held.keys, keys), (held.values, values)):
            kept = self._kept(new)
            own[layer] = np.concatenate([own[layer], kept]) if layer in own else kept
        return held.keys[layer], held.values[layer]

    def recall(self, node: Node) -> Floats | None:
        return self._held.states.get((node.op, node.attrs["layer"]))

    def keep(self, node: Node, state: Floats) -> None:
        self._held.states[node.op, node.attrs["layer"]] = state

    def _kept(self, new: Floats) -> Floats:
        """Keys or values [T, kv_heads, head_dim] as `Options.keys_values` has them."""
        match self._program.options.keys_values:
            case "f16":
                return new.astype(np.float16).astype(np.float32)
            case "q8_0":
                kind = BY_NAME["Q8_0"]
                if new.shape[-1] % kind.block:
                    raise UnsupportedError(
                        "keys_values",
                        "q8_0 needs heads of whole blocks",
                        found=new.shape[-1],
                        expected=f"a multiple of {kind.block}",
                    )
                rows = quants.quantize(new.reshape(prod(new.shape[:-1]), new.shape[-1]), kind)
                return quants.dequantize(rows, kind).reshape(new.shape)
        return new
