"""The Triton backend: products and attention are Triton kernels, everything else is torch.

Weights stay on the device as they are stored. Products are of bfloat16 numbers summed in float32; with
`activations="f32"` of float32 ones. docs/gpu.md has the design.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from loragraft.arrays import Floats
from loragraft.backends.gpu.adapters import numbered
from loragraft.backends.gpu.program import PagedProgram, Part, check_options, halves
from loragraft.backends.gpu.tables import NONE, RopeTable, Terms
from loragraft.backends.gpu.weights import matrices_of
from loragraft.backends.plan import EmbedStep, GatedStep, LinearStep, NodeStep, Plan, Step, plan
from loragraft.backends.program import Backend, Options, Program, Weights
from loragraft.backends.reference_ops import position_factors
from loragraft.backends.triton.device import Device, open_device
from loragraft.backends.triton.launch import Adapters, Launcher, Routing
from loragraft.backends.triton.ops import OPS
from loragraft.backends.triton.pool import Pool, StatePool, find
from loragraft.backends.triton.replay import MOST_ROWS, Inputs, Replays, padded, recorder_of
from loragraft.backends.triton.weights import DeviceWeights, FloatMemory
from loragraft.errors import UnsupportedError
from loragraft.graph.ops import Graph, Node, Op
from loragraft.graph.spec import value_shapes, verify

_MOST_ROWS = 4096
_MOST_BYTES = 1 << 30
"""Of the values of a part of a batch, were all kept."""


class TritonBackend(Backend):
    """See the module's docstring. `kind`: "cuda" or "xpu"; `number`: which GPU of it, None: the first."""

    name = "triton"

    def __init__(self, kind: str = "cuda", number: int | None = None) -> None:
        self._kind, self._number = kind, number

    def prepare(self, graph: Graph, weights: Weights, options: Options | None = None) -> Program:
        options = options or Options()
        check_options(options, self._kind)
        verify(graph)
        return TritonProgram(open_device(self._kind, self._number), graph, weights, options)


class TritonProgram(PagedProgram):
    """See the module's docstring."""

    def __init__(self, device: Device, graph: Graph, weights: Weights, options: Options) -> None:
        steps = plan(graph)
        held = DeviceWeights(device, weights)
        _check_steps(steps, device)
        matrices = matrices_of(steps.steps)
        held.check_room(matrices, device.free_bytes())
        with device.refusing():
            self._floats = FloatMemory(device)
            super().__init__(graph, weights, options, steps, held, self._floats)
            self.device, self.held = device, held
            self.launch = Launcher(device, exact=options.activations == "f32")
            for name in matrices:
                held.matrix(name)
            self.pool = Pool(device, graph, halves=halves(options))
            self.states = StatePool(device, graph)
            self.ropes, self.turning = _ropes(graph, options.context, held)
            self.slopes = {
                index: device.tensor(np.array(node.attrs["slopes"], np.float32))
                for index, node in enumerate(graph.nodes)
                if node.op is Op.ATTENTION and node.attrs.get("slopes")
            }
            recorder = recorder_of(device)
        self.replays = None if recorder is None else Replays(device, recorder)
        self.notes += held.notes()
        self.shapes = value_shapes(graph)
        self.first_numbers = _first_numbers(steps)
        self._page_bytes = self.pool.page_bytes
        self._states.nbytes = self.states.slot_bytes
        self._last: tuple[Terms | None, Any, frozenset[int]] = (None, None, frozenset())

    @property
    def plan(self) -> Plan:
        return self._plan

    def _enter(self) -> None:
        self.device.check_process()

    def _make_room(self) -> None:
        if self._pages.pages > self.pool.pages:
            self.pool.grow(self._grown(self.pool.pages))
        if self._states.slots > self.states.slots:
            self.states.grow(self._grown_states(self.states.slots))

    def _rows_at_once(self, terms: Terms) -> int:
        return max(1, min(_MOST_ROWS, _MOST_BYTES // (4 * (self._plan.floats + self.width))))

    def _run_part(self, part: Part) -> Floats:
        with self.device.refusing():
            self.pool.copy(part.copies)
            arrays = self._arrays(part)
            known, table, linears = self._last
            if known is not part.terms:
                terms = part.terms
                table, linears = (
                    self.device.tensor(terms.words.view(np.int32)),
                    _changed(terms, self._numbers),
                )
                self._last = terms, table, linears

            def run(inputs: Inputs) -> Any:
                own = Adapters(
                    table,
                    self._floats.tensor,
                    part.terms.ranks,
                    part.terms.sets,
                    inputs["sets"],
                    inputs["wanted_sets"],
                    linears,
                )
                values = _Pass(self, inputs, own).run()
                return self.device.torch.stack(_largest(values), dim=-1) if self._reduced else values

            if self.replays is not None and self._repeats(part):
                arrays["tables"] = padded(arrays["tables"])
                places = self.pool.pages, self.states.slots, self._reduced
                values = self.replays.run(places, (table, self._floats.tensor), arrays, run)
            else:
                values = run({name: self.device.tensor(array) for name, array in arrays.items()})
            found: Floats = values.to("cpu").numpy()
        return found

    def _repeats(self, part: Part) -> bool:
        """Whether it is a pass of replies, of which there will be more."""
        rows = len(part.batch)
        return (
            rows <= MOST_ROWS
            and len(part.batch.runs()) == rows
            and self.observer is None
            and part.hidden is None
        )

    def _arrays(self, part: Part) -> dict[str, npt.NDArray[Any]]:
        """All that a pass takes from the processor."""
        batch = part.batch
        arrays: dict[str, npt.NDArray[Any]] = {
            "tokens": batch.tokens,
            "positions": batch.positions,
            "wanted": np.flatnonzero(batch.wants),
            "sets": batch.adapters,
            "wanted_sets": batch.adapters[batch.wants],
            **find(batch, part.tables, part.moves),
        }
        for number, table in enumerate(self.turning):
            arrays[f"turns {number}"] = table.turns(batch.positions)
        for index, node in enumerate(self.graph.nodes):
            if node.op is Op.POSITION_SCALE:
                arrays[f"factors {index}"] = position_factors(node, batch.positions)
        if part.hidden is not None:
            arrays["hidden"] = np.ascontiguousarray(part.hidden, np.float32)
        return arrays


def _largest(values: Any) -> tuple[Any, Any]:
    """Of each row the place of its largest element, the first of equals, and that."""
    peaks, places = values.max(dim=-1)
    return places.to(values.dtype), peaks


def _changed(terms: Terms, numbers: int) -> frozenset[int]:
    """The linears that some set changes."""
    table = terms.words[: numbers * terms.sets * 3].reshape(numbers, terms.sets, 3)
    changed = (table[..., 1] > 0) | (table[..., 2] != NONE)
    return frozenset(np.flatnonzero(changed.any(axis=1)).tolist())


def _first_numbers(steps: Plan) -> dict[int, int]:
    """Of each step that has linears or is an embedding, the number of the first of them."""
    of = {id(one): number for number, one in numbered(steps.steps)}
    return {
        index: of[id(step.linears[0] if isinstance(step, LinearStep) else step)]
        for index, step in enumerate(steps.steps)
        if isinstance(step, LinearStep | EmbedStep)
    }


def _ropes(graph: Graph, context: int | None, held: DeviceWeights) -> tuple[dict[int, int], list[RopeTable]]:
    """The tables of ROPE nodes, equal ones being one; and which each has, by the number of the node."""
    known: dict[Any, int] = {}
    numbers: dict[int, int] = {}
    tables: list[RopeTable] = []
    for index, node in enumerate(graph.nodes):
        if node.op is Op.ROPE:
            key = node.attrs["frequencies"], node.weights, node.attrs["magnitude"], node.attrs["rotary"]
            if key not in known:
                known[key] = len(tables)
                tables.append(RopeTable.of(node, context, held.floats))
            numbers[index] = known[key]
    return numbers, tables


def _check_steps(steps: Plan, device: Device) -> None:
    """Raises UnsupportedError for the first step that this backend does not do."""
    for step in steps.steps:
        if isinstance(step, NodeStep) and step.node.op not in OPS and step.node.op is not Op.HIDDEN:
            node = step.node
            raise UnsupportedError(
                node.label or node.op, f"no kernel for {node.op} on {device.kind}", hint="use --device cpu"
            )


class _Pass:
    """Rows that go through together (`ops.Pass`). All that differs from pass to pass is in `inputs`."""

    def __init__(self, program: TritonProgram, inputs: Inputs, adapters: Adapters) -> None:
        self._program, self._inputs, self._adapters = program, inputs, adapters
        self.launch = program.launch
        self.torch = program.device.torch
        self.wanted = inputs["wanted"]
        self._routings: dict[int, Routing] = {}

    def run(self) -> Any:
        """The value of the output."""
        program, steps = self._program, self._program.plan.steps
        last = {source: number for number, step in enumerate(steps) for source in step.inputs}
        values: dict[int, Any] = {}
        for number, step in enumerate(steps):
            if program.plan.places[step.results[0]].wanted and not len(self.wanted):
                for result in step.results:
                    values[result] = program.device.empty(0, *program.shapes[result])
                continue
            if isinstance(step, NodeStep) and step.node.op is Op.HIDDEN:
                values[step.result] = self._inputs["hidden"]
                continue
            values.update(zip(step.results, self._step(number, step, values), strict=True))
            for source in step.inputs:
                if last[source] == number and source != program.plan.output:
                    values.pop(source, None)
        return values[program.plan.output]

    def _step(self, number: int, step: Step, values: Mapping[int, Any]) -> list[Any]:
        match step:
            case LinearStep():
                return self._linears(number, step, values)
            case EmbedStep():
                return [self._embed(number, step)]
            case GatedStep():
                return [self.torch.nn.functional.silu(values[step.gate]) * values[step.up]]
            case NodeStep():
                self._node = step.result
                return [OPS[step.node.op](self, step.node, *(values[source] for source in step.inputs))]

    def _linears(self, number: int, step: LinearStep, values: Mapping[int, Any]) -> list[Any]:
        program, x = self._program, values[step.x]
        routing = None
        if step.ids is not None:
            if step.ids not in self._routings:
                experts = program.graph.tensors[step.linears[0].weight].shape[0]
                self._routings[step.ids] = self.launch.routing(values[step.ids], experts)
            routing = self._routings[step.ids]
        if program.observer is not None:
            names = tuple(linear.weight for linear in step.linears)
            ids = None if step.ids is None else values[step.ids].to("cpu").numpy()
            program.observer(names, x.to("cpu").numpy(), ids)
        return [
            self.launch.linear(
                x,
                program.held.matrix(linear.weight),
                program.shapes[linear.result][-1],
                program.first_numbers[number] + index,
                self._adapters,
                scale=None if linear.scale is None else self.small(linear.scale),
                bias=None if linear.bias is None else self.small(linear.bias),
                arch=program.held.one(linear.arch_scale),
                wanted=program.plan.places[linear.result].wanted,
                routing=routing,
            )
            for index, linear in enumerate(step.linears)
        ]

    def _embed(self, number: int, step: EmbedStep) -> Any:
        program = self._program
        return self.launch.embed(
            self._inputs["positions" if step.by_position else "tokens"],
            program.held.matrix(step.weight),
            program.first_numbers[number],
            self._adapters,
            scale=program.held.one(step.scale),
            arch=program.held.one(step.arch_scale),
        )

    # ---- what ops ask ----

    def small(self, name: str) -> Any:
        return self._program.held.small(name)

    def turns(self, node: Node) -> tuple[Any, Any]:
        both = self._inputs[f"turns {self._program.ropes[self._node]}"]
        half = node.attrs["rotary"] // 2
        return both[:, :half], both[:, half : 2 * half]

    def position_factors(self, node: Node) -> Any:
        return self._inputs[f"factors {self._node}"]

    def slopes(self, node: Node) -> Any:
        return self._program.slopes[self._node]

    def extend(self, node: Node, keys: Any, values: Any) -> tuple[Any, Any, Any, Any, Any]:
        found = self._inputs
        held = self._program.pool.extend(node.attrs["layer"], keys, values, found["slots"])
        return *held, found["tables"], found["lists"], found["positions"]

    def states(self, node: Node) -> tuple[Any, Any, Any]:
        held = self._program.states.held[self._node]
        return held, self._inputs["runs"], self._inputs["run_of"]
