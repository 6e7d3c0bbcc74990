"""The native backend: runs a graph on weights as they are stored, without expanding the model to float.

The graph becomes a plan (`backends.cpu.plan`), whose steps call the kernels of native/ on float32 buffers. A product
with a quantized weight rounds its activations to 8 bits per 32, unless `Options.activations` says otherwise; float
weights always see float32 activations. Results do not depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from loragraft import _native
from loragraft.backends.base import Backend, Session, vocabulary_of
from loragraft.backends.batch import Floats, Ids
from loragraft.backends.cpu.ops import OPS, Array, Run, check_supported
from loragraft.backends.cpu.plan import GatedStep, GroupStep, LinearStep
from loragraft.backends.cpu.weights import Linear, Model, Product
from loragraft.backends.program import Options, Program, Weights
from loragraft.errors import UnsupportedError
from loragraft.graph.ops import Graph
from loragraft.graph.spec import verify
from loragraft.system.threads import starting

engine = _native.engine

BATCH = 512
"""Tokens of one pass through the layers; a longer prompt takes several."""

Observer = Callable[[tuple[str, ...], Floats, Ids | None], None]
"""Called with the weights that are about to be multiplied by x, x itself ([T, in], or [T, k, in] where each expert has
a row of its own), and for routed experts the ids [T, k] of those chosen. x is only valid during the call."""


class NativeBackend(Backend):
    """CPU kernels; see the module's docstring."""

    name = "native"

    def prepare(self, graph: Graph, weights: Weights, options: Options | None = None) -> Program:
        raise UnsupportedError(self.name, "has no programs yet")

    def open(self, graph: Graph, weights: Weights, options: Options | None = None) -> Session:
        options = options or Options()
        if options.unchecked:
            raise UnsupportedError(
                self.name,
                "this backend fuses every epilogue in its legal order",
                hint="use backend reference",
            )
        verify(graph)
        check_supported(graph)
        with starting(options.threads or 0):
            pool = engine.ThreadPool(options.threads or 0)
        model = Model(graph, weights, pool, pack=options.activations in ("auto", "q8"))
        return NativeSession(graph, model, pool, options)


class NativeSession(Session):
    """One sequence and its cache of keys and values (`backends.base.Session`)."""

    def __init__(self, graph: Graph, model: Model, pool: engine.ThreadPool, options: Options) -> None:
        super().__init__(vocabulary_of(graph), options.context)
        self._model = model
        self._activations = "q8" if options.activations == "auto" else options.activations
        self._run = Run(model.floats, model.matrix, pool)
        self._input_of: int | None = None
        self._input = engine.Input()
        self._xa: dict[int, Floats] = {}
        self.observer: Observer | None = None

    def feed(self, ids: Ids) -> None:
        """As `forward`, without the output layer: for an `observer` that wants nothing of the predictions."""
        with self._mine():
            for _ in self._batches(self._checked(ids), predict=False):
                pass

    def _append(self, ids: Ids, last_only: bool) -> Floats:
        logits = list(self._batches(ids, last_only=last_only))
        return logits[-1] if last_only else np.concatenate(logits)

    def _batches(self, ids: Ids, *, last_only: bool = False, predict: bool = True) -> Iterator[Floats]:
        for start in range(0, len(ids), BATCH):
            batch = ids[start : start + BATCH]
            yield self._forward(batch, last_only, predict)
            self.n_past += len(batch)

    def _forward(self, ids: Ids, last_only: bool, predict: bool) -> Floats:
        model, run = self._model, self._run
        run.begin(ids, self.n_past, last_only)
        values: dict[int, Array] = {}
        self._input_of = None
        for step, released in zip(model.plan.steps, model.plan.released, strict=True):
            if not predict and model.plan.output in step.results:
                return np.empty((0, self._vocabulary), np.float32)
            if self.observer is not None and isinstance(step, LinearStep | GroupStep):
                self._observe(self.observer, step, values)
            if isinstance(step, LinearStep):
                values[step.result] = self._linear(step, values)
            elif isinstance(step, GroupStep):
                values.update(self._group(step, values))
            elif isinstance(step, GatedStep):
                values[step.result] = run.gated(values[step.gate], values[step.up])
            else:
                values[step.result] = OPS[step.node.op](run, step.node, *[values[i] for i in step.inputs])
            self._release(released, values)
        return values[model.plan.output]

    @staticmethod
    def _observe(observer: Observer, step: LinearStep | GroupStep, values: dict[int, Array]) -> None:
        linears = step.linears if isinstance(step, GroupStep) else (step,)
        ids = linears[0].ids
        observer(
            tuple(linear.weight for linear in linears),
            values[linears[0].x],
            None if ids is None else values[ids],
        )

    def _release(self, released: Iterable[int], values: dict[int, Array]) -> None:
        for index in released:
            self._run.give(values.pop(index))
            if index in self._xa:
                self._run.give(self._xa.pop(index))
            if self._input_of == index:
                self._input_of = None

    def _set_input(self, step: LinearStep, values: dict[int, Array]) -> Floats:
        """Make `_input` hold the step's x, as rows; quantized once for all that read it in a row."""
        x: Floats = values[step.x]
        x = x.reshape(-1, x.shape[-1])
        if self._input_of != step.x:
            self._input.set(x)
            self._input_of = step.x
        return x

    def _group(self, step: GroupStep, values: dict[int, Array]) -> dict[int, Floats]:
        linears = [self._model.linears[result] for result in step.results]
        if self._activations == "nvfp4" and any(linear.nvfp4 for linear in linears):
            return {one.result: self._linear(one, values) for one in step.linears}
        self._set_input(step.linears[0], values)
        lora = next((linear.lora for linear in linears if linear.lora is not None), None)
        xa = None if lora is None else self._shared_down(step.linears[0].x, lora)
        run = self._run
        outputs = [run.take(self._input.rows, linear.rows) for linear in linears]
        products = [
            (linear.weight, y, linear.end, linear.xa_first)
            for linear, y in zip(linears, outputs, strict=True)
        ]
        engine.linears(run.pool, self._input, products, xa, self._activations == "q8")
        return dict(zip(step.results, outputs, strict=True))

    def _linear(self, step: LinearStep, values: dict[int, Array]) -> Floats:
        linear, run = self._model.linears[step.result], self._run
        x = self._set_input(step, values)
        source, q8 = self._input, self._activations == "q8"
        ids = None if step.ids is None else values[step.ids]
        if self._activations == "nvfp4" and linear.nvfp4:
            source = engine.Input()
            source.set(run.round_nvfp4(x, ids, linear.input_scale))
        if ids is None:
            xa = None if linear.lora is None else self._shared_down(step.x, linear.lora)
            y = run.take(len(x), linear.rows)
            engine.linear(run.pool, linear.weight, source, y, linear.end, xa, linear.xa_first, q8)
            return y
        xa = None if linear.lora is None else self._routed(linear.lora, self._input, ids, None, False)
        y = self._routed(linear, source, ids, xa, q8)
        if xa is not None:
            run.give(xa)
        return y

    def _shared_down(self, x: int, lora: Product) -> Floats:
        """x A^T, in full precision; computed once for the dense layers that share x, which is in `_input`."""
        if x not in self._xa:
            xa = self._run.take(self._input.rows, lora.rows)
            engine.linear(self._run.pool, lora.weight, self._input, xa, lora.end, None, 0, False)
            self._xa[x] = xa
        return self._xa[x]

    def _routed(self, w: Linear | Product, x: engine.Input, ids: Ids, xa: Floats | None, q8: bool) -> Floats:
        """Products of tokens with the experts `ids` [T, k]: [T, k, rows]."""
        y = self._run.take(*ids.shape, w.rows)
        rows = None if xa is None else xa.reshape(-1, xa.shape[-1])
        engine.experts_linear(
            self._run.pool, w.weight, x, ids.reshape(-1), y.reshape(-1, w.rows), w.end, rows, q8
        )
        return y
