"""The WebGPU backend: weights stay on the device as they are stored, and a forward pass is one submission to it.

A product dequantizes eight weights at a time and multiplies in float32; activations are never rounded. Of what a pass
computes, only its result comes back. docs/gpu.md has the design.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from loragraft.adapters.lora import Adapter
from loragraft.backends.batch import AdapterSet, Batch, Floats
from loragraft.backends.plan import EmbedStep, LinearStep, Plan, plan
from loragraft.backends.program import Backend, Options, Program, Weights
from loragraft.backends.slots import Slots
from loragraft.backends.webgpu.adapters import CompiledSet, DeviceAdapters, compiled
from loragraft.backends.webgpu.buffers import Constants, DeviceWeights, FloatMemory
from loragraft.backends.webgpu.device import PARAMETERS, Device, open_device
from loragraft.backends.webgpu.memory import memory_bytes
from loragraft.backends.webgpu.pages import PAGE, Pages
from loragraft.backends.webgpu.passes import MOST_ROPES, Pass, Terms, chunks, terms_of
from loragraft.backends.webgpu.steps import ROWS, Builder, Dispatch, check_steps
from loragraft.errors import LoragraftError, PoolError, UnsupportedError
from loragraft.graph.ops import Graph, Op
from loragraft.graph.spec import verify
from loragraft.units import bytes_text, plural

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
        _check_options(options)
        verify(graph)
        return WebGPUProgram(open_device(self._number), graph, weights, options)


def _check_options(options: Options) -> None:
    if options.unchecked:
        raise UnsupportedError(
            "webgpu",
            "this backend fuses every epilogue in its legal order",
            hint="use --backend reference",
        )
    for setting, found, known in (
        ("activations", options.activations, ("auto", "f32")),
        ("keys_values", options.keys_values, ("auto", "f32", "f16")),
    ):
        if found not in known:
            raise UnsupportedError(
                setting,
                "no such kind on WebGPU",
                found=found,
                expected="one of " + ", ".join(known),
                hint="use --device cpu",
            )


class WebGPUProgram(Program):
    """See the module's docstring."""

    def __init__(self, device: Device, graph: Graph, weights: Weights, options: Options) -> None:
        super().__init__(graph, options)
        self._device = device
        steps = plan(graph)
        held = DeviceWeights(device, weights)
        matrices = [name for step in steps.steps for name in _matrices(step)]
        check_steps(steps)
        held.check(matrices, memory_bytes(device))
        constants = Constants(held)
        self._plan: Plan = steps
        self._steps = Builder(device, graph, steps, held, constants, options).build()
        self.notes += _converted(held.converted)
        if len(self._steps.ropes) > MOST_ROPES:
            raise UnsupportedError(
                "graph",
                "turns in too many ways",
                found=len(self._steps.ropes),
                expected=f"up to {MOST_ROPES}",
            )
        self._constants = constants.upload(device)
        parameters = np.frombuffer(self._steps.parameters or bytes(PARAMETERS), np.uint8)
        uniform = device.buffer(len(parameters), "the parameters", uniform=True)
        device.write(uniform, 0, parameters)
        self._parameters = device.bound(device.parameters, uniform, size=PARAMETERS)
        self._memory = FloatMemory(device)
        fixed = compiled(steps.steps, held.floats, self._memory)
        self._fixed: CompiledSet | None = fixed
        self._slots_of = Slots(graph, weights)
        self._adapters = DeviceAdapters(self._memory, self._slots_of)
        self._pages = Pages()
        self._pool: list[Any] = []
        self._pool_groups: list[Any] = []
        self._pool_pages = 0
        self._arena = device.buffer(1 << 16, "the values")
        self._batch = device.buffer(1 << 12, "the batch")
        self._landing: Any = None
        self._bound: tuple[Any, Any, Any] | None = None
        self._values: Any = None
        self._terms: tuple[list[CompiledSet], Terms] = ([], terms_of([], self._steps.numbers))
        self._hidden_at = next((i for i, node in enumerate(graph.nodes) if node.op is Op.HIDDEN), None)
        page = PAGE * 4 * sum(layer.words for layer in self._steps.layers)
        self._page_bytes = page
        self._page_limit = self._most_pages()

    def _most_pages(self) -> int | None:
        """What the pool's bytes and the device's buffers allow."""
        if not self._steps.layers:
            return None
        widest = max(layer.words for layer in self._steps.layers)
        most = self._device.binding_bytes // (PAGE * 4 * widest)
        if self.options.pool_bytes is not None:
            most = min(most, self.options.pool_bytes // self._page_bytes)
        return most

    # ---- adapters ----

    def _add(self, adapter: Adapter) -> int:
        self._device.check_process()
        slot, graph, tensors = self._slots_of.add(adapter)
        try:
            self._adapters.add(graph, tensors, slot)
        except LoragraftError:
            self._slots_of.drop(slot)
            raise
        return slot

    def _drop(self, slot: int) -> None:
        self._adapters.drop(slot)
        self._slots_of.drop(slot)

    def _ready(self, chosen: AdapterSet) -> None:
        self._adapters.get([chosen])

    # ---- sequences ----

    def _open(self) -> int:
        return self._pages.open()

    def _fork(self, sequence: int, length: int) -> int:
        return self._pages.fork(sequence, length)

    def _truncate(self, sequence: int, length: int) -> None:
        self._pages.truncate(sequence, length)

    def _close(self, sequence: int) -> None:
        self._pages.close(sequence)

    # ---- running ----

    def _forward(self, batch: Batch, hidden: Floats | None) -> Floats:
        self._device.check_process()
        sets = self._adapters.get(batch.sets)
        if self._fixed is not None:
            # The graph's own. There are no others, for `attach` refuses a second time.
            sets = [self._fixed]
            batch = Batch(
                batch.tokens, batch.sequences, batch.positions, batch.wants, np.zeros(len(batch), np.int32)
            )
        terms = self._terms_of(sets)
        runs = {
            run: (int(batch.positions[run.first]), int(batch.positions[run.stop - 1]) + 1)
            for run in batch.runs()
        }
        growth = self._pages.grow(runs, self._page_limit, self._page_bytes)
        try:
            self._make_room()
            parts, copies = [], growth.copies
            first = 0
            for part in chunks(batch, self._rows_at_once(terms.stride)):
                tables = {run.sequence: growth.tables[run.sequence] for run in part.runs()}
                one = Pass(
                    part,
                    tables,
                    terms,
                    self._steps.ropes,
                    copies,
                    self._plan.floats,
                    self.width,
                    self._selects,
                    self._steps.experts_used,
                )
                parts.append(self._submit(one, None if hidden is None else hidden[first : first + len(part)]))
                copies, first = [], first + len(part)
        except BaseException:
            self._pages.abandon(growth)
            raise
        self._pages.commit(growth)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _terms_of(self, sets: list[CompiledSet]) -> Terms:
        """The table of these sets: from pass to pass they are mostly the same."""
        known, terms = self._terms
        if len(known) != len(sets) or any(one is not other for one, other in zip(known, sets, strict=True)):
            terms = terms_of(sets, self._steps.numbers)
            self._terms = sets, terms
        return terms

    def _rows_at_once(self, stride: int) -> int:
        each = 4 * (self._plan.floats + self.width + stride * self._steps.experts_used)
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
        """The pool as large as the pages ask for, at least twice what it was, with what it held."""
        if self._pages.pages <= self._pool_pages:
            return
        device = self._device
        pages = max(self._pages.pages, 2 * self._pool_pages, 8)
        if self._page_limit is not None:
            pages = max(self._pages.pages, min(pages, self._page_limit))
        pool = [
            device.buffer(pages * PAGE * 4 * layer.words, "keys and values of a layer", full=PoolError)
            for layer in self._steps.layers
        ]
        if self._pool:
            with device.refusing():
                encoder = device.gpu.create_command_encoder()
                for old, new in zip(self._pool, pool, strict=True):
                    encoder.copy_buffer_to_buffer(old, 0, new, 0, old.size)
                device.queue.submit([encoder.finish()])
        self._pool, self._pool_pages = pool, pages
        self._pool_groups = [device.bound(device.data["write"], buffer) for buffer in pool]

    def _submit(self, one: Pass, hidden: Floats | None) -> Floats:
        device, words = self._device, one.words()
        if self._arena.size < one.arena * 4:
            self._arena = device.buffer(one.arena * 4, "the values of a pass")
        if self._batch.size < words.nbytes:
            self._batch = device.buffer(2 * words.nbytes, "the batch")
        bound = self._arena, self._batch, self._memory.buffer
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
        return self._execute(one, queue, result=True)

    def _execute(self, one: Pass, queue: list[Dispatch], *, result: bool = False) -> Floats:
        """Submits the dispatches, and reads the output if it is the `result`."""
        device = self._device
        size = 4 * one.output * one.output_rows if result else 0
        with device.refusing():
            encoder = device.gpu.create_command_encoder()
            work = encoder.begin_compute_pass()
            work.set_bind_group(0, self._values)
            for dispatch in queue:
                self._encode(work, one, dispatch)
            work.end()
            if size:
                self._land(size)
                encoder.copy_buffer_to_buffer(self._arena, one.output_at * 4, self._landing, 0, size)
            device.queue.submit([encoder.finish()])
        if not size:
            return np.empty((0, one.output), np.float32)
        return self._landed(size).reshape(one.output_rows, one.output)

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


def _converted(types: dict[str, str]) -> list[str]:
    """What is said of the weights that the device keeps in another type than the file."""
    names = ", ".join(sorted(set(types.values())))
    return [f"{plural(len(types), 'weight')} of type {names}: kept as F16 on the GPU"] if types else []


def _matrices(step: Any) -> list[str]:
    if isinstance(step, LinearStep):
        return [linear.weight for linear in step.linears]
    return [step.weight] if isinstance(step, EmbedStep) else []
