"""The native backend: runs a graph on weights as they are stored, without expanding the model to float.

The graph becomes a plan (`backends.plan`), the plan a program of the C++ core (native/engine/program.h), which a
forward pass is one call of. A product with a quantized weight rounds its activations to 8 bits per 32, unless
`Options.activations` says otherwise; float weights always see float32 activations.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from loragraft import _native
from loragraft.adapters.lora import Adapter
from loragraft.arrays import Floats, Ids
from loragraft.backends.activations import Factor, rounded_factors
from loragraft.backends.batch import AdapterSet, Batch
from loragraft.backends.cpu.adapters import compiled_adapter, compiled_set, fixed_set
from loragraft.backends.cpu.build import Built, build
from loragraft.backends.cpu.weights import EngineWeights
from loragraft.backends.plan import LinearStep, plan
from loragraft.backends.program import Backend, Options, Program, Weights
from loragraft.backends.slots import Slots
from loragraft.errors import GraphError, PoolError, UnsupportedError
from loragraft.graph.ops import Graph
from loragraft.graph.spec import verify
from loragraft.system.threads import starting

engine = _native.engine

_KEPT_SETS = 256


class NativeBackend(Backend):
    """CPU kernels; see the module's docstring."""

    name = "native"

    def prepare(self, graph: Graph, weights: Weights, options: Options | None = None) -> Program:
        options = options or Options()
        if options.unchecked:
            raise UnsupportedError(
                self.name,
                "this backend fuses every epilogue in its legal order",
                hint="use backend reference",
            )
        verify(graph)
        return NativeProgram(graph, weights, options)


class NativeProgram(Program):
    """See the module's docstring."""

    def __init__(self, graph: Graph, weights: Weights, options: Options) -> None:
        super().__init__(graph, options)
        rounding = "q8" if options.activations == "auto" else options.activations
        steps = plan(graph)
        with starting(options.threads or 0), _refusing():
            own = EngineWeights(weights, pack=rounding == "q8")
            self._built: Built = build(graph, steps, own, options, rounding)
        self._program = self._built.program
        self._slots_of = Slots(graph, weights)
        self._adapters: dict[int, Any] = {}
        self._sets: dict[AdapterSet, Any] = {}

        def factors(adapted: Graph) -> dict[str, Factor]:
            def rounds(weight: str) -> bool:
                return rounding == "q8" and bool(own.matrix(weight).has_q8)

            return rounded_factors(adapted, rounds, options.adapter_type)

        self._factors = factors
        self._fixed = fixed_set(graph, steps, own.floats, factors)
        if self._fixed is not None:
            self._program.check(self._fixed)
        self._names = {
            number: tuple(linear.weight for linear in step.linears)
            for number, step in enumerate(steps.steps)
            if isinstance(step, LinearStep)
        }

    # ---- adapters ----

    def adapter_bytes(self, adapter: Adapter) -> int:
        """At most: as it was read, and packed without loss (in half floats where these hold every number)."""
        return 2 * adapter.nbytes

    def _add(self, adapter: Adapter) -> int:
        slot, graph, tensors = self._slots_of.add(adapter)
        with _refusing():
            self._adapters[slot] = compiled_adapter(graph, tensors, self._factors)
        return slot

    def _drop(self, slot: int) -> None:
        self._slots_of.drop(slot)
        del self._adapters[slot]
        self._sets = {chosen: it for chosen, it in self._sets.items() if slot not in dict(chosen)}

    def _ready(self, chosen: AdapterSet) -> None:
        self._set(chosen)

    def _set(self, chosen: AdapterSet) -> Any:
        """The set for the engine: strengths alone cost a multiplication for each layer, DoRA's factors its rows."""
        if chosen not in self._sets:
            while len(self._sets) >= _KEPT_SETS:
                self._sets.pop(next(iter(self._sets)))
            made = compiled_set(chosen, self._adapters, self._slots_of, self._factors)
            self._program.check(made)
            self._sets[chosen] = made
        return self._sets[chosen]

    # ---- sequences ----

    def _open(self) -> int:
        with _refusing():
            return int(self._program.open())

    def _fork(self, sequence: int, length: int) -> int:
        with _refusing():
            return int(self._program.fork(sequence, length))

    def _truncate(self, sequence: int, length: int) -> None:
        with _refusing():
            self._program.truncate(sequence, length)

    def _close(self, sequence: int) -> None:
        self._program.close(sequence)

    # ---- running ----

    def _forward(self, batch: Batch, hidden: Floats | None) -> Floats:
        sets = [self._set(chosen) for chosen in batch.sets]
        sets_of = batch.adapters
        if (
            self._fixed is not None
        ):  # the graph's own; there are no others, for `attach` refuses a second time
            sets, sets_of = [self._fixed], np.zeros(len(batch), np.int32)
        rows = int(batch.wants.sum()) if self._selects else len(batch)
        output = np.empty((rows, self.width), np.float32)
        if hidden is not None:
            hidden = np.ascontiguousarray(hidden, np.float32)
        with _refusing():
            self._program.run(
                batch.tokens,
                batch.sequences,
                batch.positions,
                batch.wants,
                sets_of,
                sets,
                hidden,
                self._built.output,
                output,
                None if self.observer is None else self._look,
            )
        return output

    def _look(self, step: int, x: Floats, ids: Ids | None) -> None:
        assert self.observer is not None
        self.observer(self._names[step], x, ids)


@contextmanager
def _refusing() -> Iterator[None]:
    """Turns what the engine refuses into the product's own errors."""
    try:
        yield
    except MemoryError as problem:
        if not str(problem).startswith("state pool"):
            raise
        raise PoolError("keys and values", str(problem).removeprefix("state pool: ")) from None
    except ValueError as problem:
        subject, _, rest = str(problem).partition(": ")
        raise GraphError(subject, rest or "is refused") from None
