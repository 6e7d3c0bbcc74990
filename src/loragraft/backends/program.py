"""What a backend is: it prepares a verified graph over weights once, as a program that any number of sequences, each
with its own adapters, then run through together."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from typing import Literal

import numpy as np

from loragraft.adapters.lora import Adapter
from loragraft.arrays import Floats, Ids
from loragraft.backends.batch import AdapterSet, Batch, Piece, Run
from loragraft.errors import AdapterError, GraphError
from loragraft.formats.source import TensorSource
from loragraft.graph.ops import RECURRENT, Graph, Op
from loragraft.graph.spec import narrowed, value_shapes

Weights = Mapping[str, TensorSource | Floats]
"""Every tensor that the graph names: the model's as rows in their stored type, others as float32 arrays."""

Observer = Callable[[tuple[str, ...], Floats, Ids | None], None]
"""Called with the weights that are about to be multiplied by x, x itself (float32 [rows, in], or [rows, k, in] where
each expert has an x of its own), and for routed experts the ids int32 [rows, k] of those chosen. A pass may call it for
some of its rows at a time. Both arrays are valid during the call only."""


@dataclass(frozen=True, slots=True)
class Options:
    """How to run, the same for every backend; one that cannot honour a setting raises UnsupportedError."""

    context: int | None = None
    """Tokens that a sequence may have; None: as many as come, up to what memory holds."""
    threads: int | None = None
    """None: one for each processor that the process may use."""
    activations: Literal["auto", "f32", "q8", "nvfp4"] = "auto"
    """What activations are rounded to before a product with a quantized weight; auto is the backend's own choice."""
    adapter_type: Literal["auto", "f16", "q8"] = "auto"
    """What the numbers of an adapter's A and B are rounded to beside products of 8-bit activations: 8 bits (q8, and
    auto) or 11 (f16), as `backends.activations` says. Elsewhere they are taken as they are."""
    keys_values: Literal["auto", "f32", "f16", "q8_0"] = "auto"
    """How keys and values are kept. auto: f32 on the reference backend and where activations are f32, else f16."""
    pool_bytes: int | None = None
    """What the keys and values of all sequences may take together; None: as much as memory holds."""
    unchecked: bool = False
    """Run a graph that `graph.spec` rejects. Only `check` wants this, to measure what a wrong order costs."""


class Backend(ABC):
    """Runs graphs."""

    name: str

    @abstractmethod
    def prepare(self, graph: Graph, weights: Weights, options: Options | None = None) -> Program:
        """Verify the graph (`graph.spec.verify`), plan it and bring the weights into the form that they run in.

        Raises GraphError if the graph breaks a rule, UnsupportedError for a type or setting that this backend lacks.
        """


class Program(ABC):
    """A graph ready to run, the sequences that are under way in it, and the adapters that they may use.

    Batch-invariant: a row's logits are the same to the bit whatever else is in its batch, whichever adapters other rows
    use, however its prefix came about (at once, token by token, forked, rewound) and for any number of threads.

    With recurrent layers, a sequence keeps their states as they are now: it is forked where it ends, or where it
    begins, and not between.

    Calls from several threads take turns. A call that raises leaves every sequence as it was.
    """

    def __init__(self, graph: Graph, options: Options) -> None:
        self.graph = graph
        self.options = options
        self.notes: list[str] = []
        """What the user should know of how it runs, one line each."""
        self.observer: Observer | None = None
        """Shown the input of every product, before it."""
        shapes = value_shapes(graph)
        embedded = (
            graph.tensors[node.weights[0]].shape[0]
            for node in graph.nodes
            if node.op is Op.EMBED and graph.nodes[node.inputs[0]].op is Op.TOKENS
        )
        self._vocabulary = next(embedded, None)
        most = [node.attrs["most"] for node in graph.nodes if node.attrs.get("most") is not None]
        self._positions = min(most, default=None)
        self._hidden = next((node.attrs["width"] for node in graph.nodes if node.op is Op.HIDDEN), None)
        self.width = shapes[graph.output][-1]
        """Of a row of the output: the vocabulary, or of a slice that ends at a cut, d."""
        self._selects = narrowed(graph)[graph.output]
        self._at_cut = graph.output in graph.cuts and not self._selects
        self.rewinds = not any(node.op in RECURRENT for node in graph.nodes)
        """Whether sequences can be taken back to any length; else only to their present one, and to 0."""
        self.reduces = False
        """Whether `likeliest` brings back less than `run`: logits stay on the device."""
        self._lengths: dict[int, int] = {}
        self._slots: set[int] = set()
        self._turn = threading.RLock()
        self._running = False
        self._ended: list[int] = []

    # ---- adapters ----

    def add_adapter(self, adapter: Adapter) -> int:
        """Give `adapter` a slot, which batches name it by; the base is not touched. Its pairs are checked against the
        graph, and the graph with it against `graph.spec`. Raises AdapterError, also for an adapter that changes whole
        tensors."""
        if not adapter.is_plain:
            raise AdapterError(
                adapter.path,
                "changes whole tensors, which a program that is ready cannot",
                hint="load the model with it",
            )
        with self._mine():
            slot = self._add(adapter)
            self._slots.add(slot)
            return slot

    def adapter_bytes(self, adapter: Adapter) -> int:
        """The memory that a slot for `adapter` takes."""
        return adapter.nbytes

    def drop_adapter(self, slot: int) -> None:
        """Forget the adapter in `slot`. What sequences hold, they keep. Raises AdapterError if it is empty."""
        with self._mine():
            self._check_slot(slot)
            self._slots.discard(slot)
            self._drop(slot)

    def check_adapters(self, chosen: AdapterSet) -> None:
        """Raises AdapterError for adapters that do not run together, in this order at these strengths. `forward` would,
        and with it fail for all rows of its batch."""
        with self._mine():
            self._check_set(chosen)
            self._ready(chosen)

    # ---- sequences ----

    def open_sequence(self) -> int:
        """A new sequence, without tokens."""
        with self._mine():
            sequence = self._open()
            self._lengths[sequence] = 0
            return sequence

    def fork_sequence(self, sequence: int, length: int | None = None) -> int:
        """A new sequence that begins with the first `length` tokens (all of them, if None) of another. What they share
        is kept once, until one of them writes over it. Raises GraphError for a length between, if not `rewinds`."""
        with self._mine():
            length = self._cut(sequence, length)
            fork = self._fork(sequence, length)
            self._lengths[fork] = length
            return fork

    def truncate_sequence(self, sequence: int, length: int) -> None:
        """Forget everything after the first `length` tokens. Raises GraphError for a length between, if not
        `rewinds`."""
        with self._mine():
            self._truncate(sequence, self._cut(sequence, length))
            self._lengths[sequence] = length

    def close_sequence(self, sequence: int) -> None:
        """Forget it altogether."""
        with self._turn:
            self._reached(sequence, None)
            if self._running:  # a generator that nobody needs any more may be collected at any time
                self._ended.append(sequence)
                return
            self._close(sequence)
            del self._lengths[sequence]

    def length(self, sequence: int) -> int:
        """How many tokens it holds: the position of the next."""
        with self._turn:
            return self._reached(sequence, None)

    # ---- running ----

    def forward(self, batch: Batch, hidden: Floats | None = None) -> Floats:
        """Append the rows of `batch` to their sequences.

        Returns the logits float32 [wanted rows, vocab], in the batch's order, or all rows [T, d] where the graph is a
        slice that ends at a cut. `hidden` float32 [T, d] is what enters a slice that begins at one. Raises GraphError
        for a batch that does not fit (a token outside the vocabulary, a sequence that is not open or not continued, a
        full context), AdapterError for a slot that is empty, PoolError if there is no room.
        """
        with self._mine():
            return self._run(batch, hidden)

    def run(self, pieces: Sequence[Piece], hidden: Floats | None = None) -> Floats:
        """`forward` of one batch of these pieces."""
        with self._mine():
            return self._run(Batch.of(pieces, self.length), hidden)

    def likeliest(self, pieces: Sequence[Piece] | Batch) -> tuple[Ids, Floats]:
        """`run` or `forward`, but of each wanted row's logits only the largest comes back: its token, int32 (of equals
        the first), and itself, float32; NaN counts as the largest."""
        with self._mine():
            return self._largest(pieces if isinstance(pieces, Batch) else Batch.of(pieces, self.length))

    def _largest(self, batch: Batch) -> tuple[Ids, Floats]:
        logits = self._run(batch, None)
        tokens = logits.argmax(axis=-1)
        return tokens.astype(np.int32), logits[np.arange(len(logits)), tokens]

    def _run(self, batch: Batch, hidden: Floats | None) -> Floats:
        runs = batch.runs()
        self._check(batch, runs, hidden)
        self._running = True
        try:
            values = self._forward(batch, hidden)
        finally:
            self._running = False
            while self._ended:
                self.close_sequence(self._ended.pop())
        for run in runs:
            if run.sequence in self._lengths:
                self._lengths[run.sequence] += run.stop - run.first
        return values if self._selects or self._at_cut else values[batch.wants]

    def _check(self, batch: Batch, runs: Sequence[Run], hidden: Floats | None) -> None:
        if self._vocabulary is not None:
            tokens = batch.tokens
            least, most = _bounds(tokens)
            if least < 0 or most >= self._vocabulary:
                raise GraphError(
                    "batch",
                    "no such token",
                    found=tokens[(tokens < 0) | (tokens >= self._vocabulary)][0],
                    expected=f"0 to {self._vocabulary - 1}",
                )
        wanted = None if self._hidden is None else (len(batch), self._hidden)
        if (None if hidden is None else np.shape(hidden)) != wanted:
            raise GraphError(
                "hidden",
                "is not the input of this graph",
                found=None if hidden is None else f"shape {np.shape(hidden)}",
                expected="none" if wanted is None else f"shape {wanted}",
            )
        if len({run.sequence for run in runs}) != len(runs):
            raise GraphError("batch", "the rows of a sequence must be together")
        for run in runs:
            length, count = self._reached(run.sequence, None), run.stop - run.first
            positions = batch.positions[run.first : run.stop]
            if positions[0] != length or (count > 1 and (np.diff(positions) != 1).any()):
                raise GraphError(
                    f"sequence {run.sequence}",
                    "is not continued",
                    found=f"positions {positions[:8].tolist()}",
                    expected=f"from {length} on",
                )
            if self._positions is not None and length + count > self._positions:
                raise GraphError(
                    f"sequence {run.sequence}",
                    "the position is past the model's context",
                    found=length + count - 1,
                    expected=f"up to {self._positions - 1}",
                )
            context = self.options.context
            if context is not None and length + count > context:
                raise GraphError(
                    f"sequence {run.sequence}",
                    "the context is full",
                    found=length + count,
                    expected=f"up to {context} tokens",
                )
        least, most = _bounds(batch.adapters)
        if least < -1 or most >= len(batch.sets):
            raise GraphError(
                "batch",
                "no such set of adapters",
                found=batch.adapters,
                expected=f"-1 to {len(batch.sets) - 1}",
            )
        for chosen in batch.sets:
            self._check_set(chosen)

    def _check_set(self, chosen: AdapterSet) -> None:
        for slot, strength in chosen:
            self._check_slot(slot)
            if not isfinite(strength):
                raise AdapterError(
                    f"adapter {slot}", "bad strength", found=strength, expected="a finite number"
                )

    def _check_slot(self, slot: int) -> None:
        if slot not in self._slots:
            raise AdapterError(f"adapter {slot}", "there is none in this slot", hint="was it dropped?")

    def _reached(self, sequence: int, length: int | None) -> int:
        """`length`, or all that the sequence holds; raises GraphError if it holds less."""
        held = self._lengths.get(sequence)
        if held is None:
            raise GraphError(f"sequence {sequence}", "is not open")
        if length is not None and not 0 <= length <= held:
            raise GraphError(
                f"sequence {sequence}", "cannot rewind", found=length, expected=f"0 to {held} tokens"
            )
        return held if length is None else length

    def _cut(self, sequence: int, length: int | None) -> int:
        """`_reached`, where states allow it."""
        held, length = self._reached(sequence, None), self._reached(sequence, length)
        if not self.rewinds and length not in (0, held):
            raise GraphError(
                f"sequence {sequence}",
                "cannot rewind",
                found=length,
                expected=f"0 or {held} tokens: recurrent layers do not say what they held before",
            )
        return length

    @contextmanager
    def _mine(self) -> Iterator[None]:
        with self._turn:
            if self._running:
                raise GraphError("program", "is running: its observer cannot use it")
            yield

    # ---- what backends do; arguments were checked ----

    @abstractmethod
    def _add(self, adapter: Adapter) -> int: ...

    @abstractmethod
    def _drop(self, slot: int) -> None: ...

    @abstractmethod
    def _ready(self, chosen: AdapterSet) -> None:
        """Make ready to run with this set. Raises AdapterError if it cannot be."""

    @abstractmethod
    def _open(self) -> int: ...

    @abstractmethod
    def _fork(self, sequence: int, length: int) -> int: ...

    @abstractmethod
    def _truncate(self, sequence: int, length: int) -> None: ...

    @abstractmethod
    def _close(self, sequence: int) -> None: ...

    @abstractmethod
    def _forward(self, batch: Batch, hidden: Floats | None) -> Floats:
        """The value of the graph's output; a batch that fails changes no sequence."""


def _bounds(values: Ids) -> tuple[int, int]:
    """The least and the largest. Of a few values, Python's own take a tenth of the time of NumPy's."""
    few = values.tolist() if len(values) <= 64 else (values.min(), values.max())
    return int(min(few)), int(max(few))
