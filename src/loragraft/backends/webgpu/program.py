"""The WebGPU backend: weights stay on the device as they are stored, and a forward pass is one submission to it.

A product dequantizes eight weights at a time and multiplies in float32; activations are never rounded. Of what a pass
computes, only its result comes back. docs/gpu.md has the design.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from loragraft.arrays import Floats
from loragraft.backends.gpu.pages import PAGE
from loragraft.backends.gpu.program import PagedProgram, Part, check_options
from loragraft.backends.gpu.tables import Terms
from loragraft.backends.gpu.weights import matrices_of
from loragraft.backends.plan import plan
from loragraft.backends.program import Backend, Options, Program, Weights
from loragraft.backends.webgpu.buffers import Constants, DeviceWeights, FloatMemory
from loragraft.backends.webgpu.device import PARAMETERS, Device, open_device
from loragraft.backends.webgpu.dispatches import ROWS, Dispatch
from loragraft.backends.webgpu.memory import memory_bytes
from loragraft.backends.webgpu.passes import HEAD, MOST_ROPES, Pass
from loragraft.backends.webgpu.steps import Builder, check_steps
from loragraft.errors import PoolError, UnsupportedError
from loragraft.graph.ops import Graph, Op
from loragraft.graph.spec import verify
from loragraft.units import bytes_text

_MOST_ARENA = 256 << 20
"""Bytes of values of a pass; larger batches go through in parts."""
_MOST_ROWS = 4096


class WebGPUBackend(Backend):
    """GPU kernels; see the module's docstring. `number`: which of `device.adapters()`; None: the best."""

    name = "webgpu"

    def __init__(self, number: int | None = None) -> None:
        self._number = number

    def prepare(self, graph: Graph, weights: Weights, options: Options | None = None) -> Program:
        options = options or Options()
        check_options(options, "webgpu")
        verify(graph)
        return WebGPUProgram(open_device(self._number), graph, weights, options)


class WebGPUProgram(PagedProgram):
    """See the module's docstring."""

    def __init__(self, device: Device, graph: Graph, weights: Weights, options: Options) -> None:
        steps = plan(graph)
        held = DeviceWeights(device, weights)
        check_steps(steps)
        held.check(matrices_of(steps.steps), memory_bytes(device))
        constants = Constants(held)
        made = Builder(device, graph, steps, held, constants, options).build()
        if len(made.ropes) > MOST_ROPES:
            raise UnsupportedError(
                "graph", "turns in too many ways", found=len(made.ropes), expected=f"up to {MOST_ROPES}"
            )
        self._floats = FloatMemory(device)
        super().__init__(graph, weights, options, steps, held, self._floats, begin=HEAD)
        self._device, self._steps = device, made
        self.notes += held.notes()
        self._constants = constants.upload(device)
        parameters = np.frombuffer(made.parameters or bytes(PARAMETERS), np.uint8)
        uniform = device.buffer(len(parameters), "the parameters", uniform=True)
        device.write(uniform, 0, parameters)
        self._parameters = device.bound(device.parameters, uniform, size=PARAMETERS)
        self._pool: list[Any] = []
        self._pool_groups: list[Any] = []
        self._pool_pages = 0
        self._held: list[Any] = []
        self._state_groups: list[Any] = []
        self._held_slots = 0
        self._arena = device.buffer(1 << 16, "the values")
        self._batch = device.buffer(1 << 12, "the batch")
        self._landing: Any = None
        self._bound: tuple[Any, Any, Any] | None = None
        self._values: Any = None
        self._hidden_at = next((i for i, node in enumerate(graph.nodes) if node.op is Op.HIDDEN), None)
        self._page_bytes = PAGE * 4 * sum(layer.words for layer in made.layers)
        self._states.nbytes = 4 * sum(made.states)
        if made.layers:
            widest = max(layer.words for layer in made.layers)
            self._page_limit = device.binding_bytes // (PAGE * 4 * widest)
        if made.states:
            self._state_limit = device.binding_bytes // (4 * max(1, *made.states))

    def _enter(self) -> None:
        self._device.check_process()

    def _rows_at_once(self, terms: Terms) -> int:
        each = 4 * (self._plan.floats + self.width + terms.stride * self._steps.experts_used)
        most = min(self._device.binding_bytes, _MOST_ARENA) // each
        if not most:
            raise UnsupportedError(
                "the values of one token",
                f"do not fit a buffer of {self._device.name}",
                found=bytes_text(each),
                hint="use --device cpu",
            )
        return min(most, _MOST_ROWS, self._device.groups // self._steps.experts_used)

    def _make_room(self) -> None:
        if self._pages.pages > self._pool_pages:
            pages = self._grown(self._pool_pages)
            sizes = [pages * PAGE * 4 * layer.words for layer in self._steps.layers]
            self._pool = self._larger(self._pool, sizes, "keys and values of a layer")
            self._pool_pages = pages
            self._pool_groups = self._writable(self._pool)
        if self._states.slots > self._held_slots:
            slots = self._grown_states(self._held_slots)
            sizes = [slots * 4 * floats for floats in self._steps.states]
            self._held = self._larger(self._held, sizes, "states of a layer")
            self._held_slots = slots
            self._state_groups = self._writable(self._held)

    def _larger(self, old: list[Any], sizes: list[int], what: str) -> list[Any]:
        """Buffers of these sizes, with what the old ones hold."""
        device = self._device
        new = [device.buffer(size, what, full=PoolError) for size in sizes]
        if old:
            with device.refusing():
                encoder = device.gpu.create_command_encoder()
                for before, after in zip(old, new, strict=True):
                    encoder.copy_buffer_to_buffer(before, 0, after, 0, before.size)
                device.queue.submit([encoder.finish()])
        return new

    def _writable(self, buffers: list[Any]) -> list[Any]:
        return [self._device.bound(self._device.data["write"], buffer) for buffer in buffers]

    def _run_part(self, part: Part) -> Floats:
        made, hidden = self._steps, part.hidden
        one = Pass(
            part.batch,
            part.tables,
            part.moves,
            part.terms,
            made.ropes,
            part.copies,
            self._plan.floats,
            self.width,
            self._selects,
            made.experts_used,
        )
        device, words = self._device, one.words()
        if self._arena.size < one.arena * 4:
            self._arena = device.buffer(one.arena * 4, "the values of a pass")
        if self._batch.size < words.nbytes:
            self._batch = device.buffer(2 * words.nbytes, "the batch")
        bound = self._arena, self._batch, self._floats.buffer
        if self._bound != bound:
            self._bound, self._values = bound, device.bound(device.values, *bound, self._constants)
        device.write(self._batch, 0, words)
        if hidden is not None and self._hidden_at is not None:
            offset = self._plan.places[self._hidden_at].offset
            at = one.output_at if offset is None else offset * one.rows
            device.write(self._arena, at * 4, np.ascontiguousarray(hidden, np.float32))
        queue: list[Dispatch] = list(self._steps.copies) if one.copies else []
        for number, step in enumerate(self._steps.steps):
            if self.observer is not None and number in self._steps.observed:
                self._execute(one, queue)
                queue = []
                self._show(one, number)
            queue += step
        if not self._reduced:
            return self._execute(one, queue, one.output_at, one.output)
        return self._execute(one, [*queue, *self._steps.largest], one.largest_at, 2)

    def _execute(self, one: Pass, queue: list[Dispatch], first: int = 0, width: int = 0) -> Floats:
        """Submits the dispatches, and reads what is `width` wide at float `first` of the arena, for each row of the
        output."""
        device = self._device
        size = 4 * width * one.output_rows
        with device.refusing():
            encoder = device.gpu.create_command_encoder()
            work = encoder.begin_compute_pass()
            work.set_bind_group(0, self._values)
            for dispatch in queue:
                self._encode(work, one, dispatch)
            work.end()
            if size:
                self._land(size)
                encoder.copy_buffer_to_buffer(self._arena, first * 4, self._landing, 0, size)
            device.queue.submit([encoder.finish()])
        if not size:
            return np.empty((0, width), np.float32)
        return self._landed(size).reshape(one.output_rows, width)

    def _encode(self, work: Any, one: Pass, dispatch: Dispatch) -> None:
        pipeline, (x, y, z) = dispatch.pipeline, dispatch.grid(one)
        if dispatch.few is not None:
            if z <= 2:
                pipeline = dispatch.few
            else:
                z = -(-z // ROWS)
        if not (x and y and z):
            return
        work.set_pipeline(pipeline)
        work.set_bind_group(1, self._parameters, [dispatch.parameters])
        if dispatch.data is not None:
            work.set_bind_group(2, dispatch.data)
        elif dispatch.layer is not None:
            work.set_bind_group(2, self._pool_groups[dispatch.layer])
        elif dispatch.state is not None:
            work.set_bind_group(2, self._state_groups[dispatch.state])
        work.dispatch_workgroups(x, y, z)

    def _land(self, size: int) -> None:
        if self._landing is None or self._landing.size < size:
            self._landing = self._device.landing(-(-size // 256) * 256)

    def _landed(self, size: int) -> Floats:
        with self._device.refusing():
            self._landing.map_async("READ", 0, size).sync_wait()
            try:
                data = np.frombuffer(self._landing.read_mapped(0, size), np.float32)
            finally:
                self._landing.unmap()
        return data

    def _show(self, one: Pass, number: int) -> None:
        """The input of the products of a step to the observer."""
        observer, seen = self.observer, self._steps.observed[number]
        assert observer is not None
        x = self._read(one, seen.x)
        ids = None if seen.ids is None else self._read(one, seen.ids).astype(np.int32)
        observer(seen.weights, x, ids)

    def _read(self, one: Pass, node: int) -> Floats:
        place, shape = self._plan.places[node], self._steps.shapes[node]
        rows = one.wanted if place.wanted else one.rows
        size = 4 * rows * place.width
        if not size:
            return np.empty((0, *shape), np.float32)
        at = one.output_at if place.offset is None else place.offset * one.rows
        with self._device.refusing():
            self._land(size)
            encoder = self._device.gpu.create_command_encoder()
            encoder.copy_buffer_to_buffer(self._arena, at * 4, self._landing, 0, size)
            self._device.queue.submit([encoder.finish()])
        return self._landed(size).reshape(rows, *shape)
