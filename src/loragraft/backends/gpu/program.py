"""A program on a GPU: adapters and sequences, whatever runs the kernels."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from loragraft.adapters.lora import Adapter
from loragraft.arrays import Floats, Ids
from loragraft.backends.batch import AdapterSet, Batch
from loragraft.backends.gpu.adapters import CompiledSet, DeviceAdapters, compiled, numbered
from loragraft.backends.gpu.memory import Memory
from loragraft.backends.gpu.pages import Pages
from loragraft.backends.gpu.states import Move, States
from loragraft.backends.gpu.tables import Terms, chunks, terms_of
from loragraft.backends.gpu.weights import StoredWeights
from loragraft.backends.plan import Plan
from loragraft.backends.program import Options, Program, Weights
from loragraft.backends.slots import Slots
from loragraft.errors import LoragraftError, UnsupportedError
from loragraft.graph.ops import Graph


def check_options(options: Options, device: str) -> None:
    """Raises UnsupportedError for what no backend for GPUs does. `device`: what `--device` calls it."""
    if options.unchecked:
        raise UnsupportedError(
            device,
            "this backend fuses every epilogue in its legal order",
            hint="use --backend reference",
        )
    for setting, found, known in (
        ("activations", options.activations, ("auto", "f32")),
        ("adapter_type", options.adapter_type, ("auto",)),
        ("keys_values", options.keys_values, ("auto", "f32", "f16")),
    ):
        if found not in known:
            raise UnsupportedError(
                setting,
                f"no such kind on {device}",
                found=found,
                expected="one of " + ", ".join(known),
                hint="use --device cpu",
            )


def halves(options: Options) -> bool:
    """Whether keys and values are kept as F16; F32 if not."""
    kept = options.keys_values
    return kept == "f16" or (kept == "auto" and options.activations != "f32")


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of a batch that go through together. `tables`: of each sequence its pages, as they are once `copies` (from,
    to) of pages are made; `moves`: of each its states; `hidden`: what enters a slice of a model."""

    batch: Batch
    tables: Mapping[int, list[int]]
    moves: Mapping[int, Move]
    terms: Terms
    copies: Sequence[tuple[int, int]]
    hidden: Floats | None


class PagedProgram(Program):
    """Adapters by slot in one memory of the device, sequences in pages of a pool. `begin`: see `terms_of`."""

    def __init__(
        self,
        graph: Graph,
        weights: Weights,
        options: Options,
        plan: Plan,
        held: StoredWeights,
        memory: Memory,
        *,
        begin: int = 0,
    ) -> None:
        super().__init__(graph, options)
        self._plan, self._memory, self._begin = plan, memory, begin
        self._numbers = sum(1 for _ in numbered(plan.steps))
        self._fixed: CompiledSet | None = compiled(plan.steps, held.floats, memory)
        self._slots_of = Slots(graph, weights)
        self._adapters = DeviceAdapters(memory, self._slots_of)
        self._terms: tuple[list[CompiledSet], Terms] = ([], terms_of([], self._numbers, begin))
        self.reduces = True
        self._reduced = False
        """Whether parts give of each row of the output the place of its largest element, and that, [rows, 2]."""
        self._pages = Pages()
        self._page_bytes = 0
        self._page_limit: int | None = None
        """What buffers allow; the pool's bytes may allow less."""
        self._states = States()
        self._state_limit: int | None = None

    # ---- adapters ----

    def _add(self, adapter: Adapter) -> int:
        self._enter()
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
        fork = self._pages.fork(sequence, length)
        self._states.fork(sequence, fork, length)
        return fork

    def _truncate(self, sequence: int, length: int) -> None:
        self._pages.truncate(sequence, length)
        self._states.truncate(sequence, length)

    def _close(self, sequence: int) -> None:
        self._pages.close(sequence)
        self._states.close(sequence)

    # ---- running ----

    def _largest(self, batch: Batch) -> tuple[Ids, Floats]:
        self._reduced = True
        try:
            found = self._run(batch, None)
        finally:
            self._reduced = False
        return found[:, 0].astype(np.int32), found[:, 1]

    def _forward(self, batch: Batch, hidden: Floats | None) -> Floats:
        self._enter()
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
        moves = self._states.begin(
            (run.sequence for run in runs), self._most(self._states.nbytes, self._state_limit)
        )
        try:
            growth = self._pages.grow(runs, self._most_pages(), self._page_bytes)
        except BaseException:
            self._states.abandon(moves)
            raise
        try:
            self._make_room()
            parts: list[Floats] = []
            copies, first, coming = growth.copies, 0, dict(moves)
            for rows in chunks(batch, self._rows_at_once(terms)):
                tables = {run.sequence: growth.tables[run.sequence] for run in rows.runs()}
                own = None if hidden is None else hidden[first : first + len(rows)]
                own_moves = {run.sequence: coming[run.sequence] for run in rows.runs()} if moves else {}
                parts.append(self._run_part(Part(rows, tables, own_moves, terms, copies, own)))
                copies, first = [], first + len(rows)
                coming |= {sequence: (new, new) for sequence, (_, new) in own_moves.items()}
        except BaseException:
            self._pages.abandon(growth)
            self._states.abandon(moves)
            raise
        self._pages.commit(growth)
        self._states.commit(moves)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _terms_of(self, sets: list[CompiledSet]) -> Terms:
        """The table of these sets: from pass to pass they are mostly the same."""
        known, terms = self._terms
        if len(known) != len(sets) or any(one is not other for one, other in zip(known, sets, strict=True)):
            terms = terms_of(sets, self._numbers, self._begin)
            self._terms = sets, terms
        return terms

    def _most(self, each: int, limit: int | None) -> int | None:
        """Of what takes `each` bytes, as many as `limit` and the pool's bytes allow."""
        if not each or self.options.pool_bytes is None:
            return limit
        fit = self.options.pool_bytes // each
        return fit if limit is None else min(fit, limit)

    def _most_pages(self) -> int | None:
        """States and pages share the pool's bytes."""
        most = self._most(self._page_bytes, self._page_limit)
        if most is None or not self._page_bytes or self.options.pool_bytes is None:
            return most
        left = self.options.pool_bytes - self._states.used * self._states.nbytes
        return min(most, left // self._page_bytes)

    def _grown(self, held: int) -> int:
        """Pages for a pool that has `held`: at least twice as many, if the limit allows."""
        return _doubled(held, self._pages.pages, self._most_pages(), 8)

    def _grown_states(self, held: int) -> int:
        """Slots, likewise."""
        return _doubled(held, self._states.slots, self._most(self._states.nbytes, self._state_limit), 2)

    @abstractmethod
    def _enter(self) -> None:
        """Raises LoragraftError where the device cannot be used any more."""

    @abstractmethod
    def _make_room(self) -> None:
        """Let the pool have `self._pages.pages` pages and `self._states.slots` slots, with what they hold. Raises
        PoolError if there is no memory."""

    @abstractmethod
    def _rows_at_once(self, terms: Terms) -> int:
        """The most rows of a part of a batch."""

    @abstractmethod
    def _run_part(self, part: Part) -> Floats:
        """The output, or what `_reduced` says of it."""


def _doubled(held: int, needed: int, limit: int | None, least: int) -> int:
    many = max(needed, 2 * held, least)
    return many if limit is None else max(needed, min(many, limit))
