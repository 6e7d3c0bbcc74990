"""The gradients that reach the outputs of linear layers, layer by layer, in bounded memory.

The loss is that of labels drawn from the model's own predictions, so that the second moments of its gradients are the
Fisher information: how much the predictions move with the outputs. The hidden states that enter each layer are kept in
a file without a name; then each layer, from the last to the first, is run again and gone through backwards
(`backends.gradients`). What is kept of a layer's gradients, squares by token and second moments, goes to the file too.

The windows may be shared out over the places of a team, layer by layer: `GradientPasses` is what each has.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from loragraft.arrays import Floats, Ids
from loragraft.backends.gradients import Tape
from loragraft.graph.ops import Graph
from loragraft.progress import SILENT, Progress
from loragraft.quants import native
from loragraft.streaming.layers import Layers, multiplied
from loragraft.streaming.moments import BLOCK, mirror
from loragraft.streaming.tree import Node, Tree, shares
from loragraft.streaming.walk import Walk
from loragraft.system.memory import give_back
from loragraft.system.threads import in_threads
from loragraft.system.workers.team import Alone, Message, Team

#: Tokens that go through a layer at once, forward and backward.
BATCH = 512
#: Batches whose sums are added one after another, a leaf of the tree of sums. (The sums of all weights of a layer wait
#: in memory for those of other leaves: small leaves take more.)
LEAF = 4
#: Of every so manyth position, what attention mixes is looked at: neighbours are mixed much alike.
MIXED = 4
#: Of more outputs than that, second moments are those of groups of neighbours: the whole matrix would be too large.
MOST_OUTPUTS = 2048
_SEED = 20
_Key = tuple[str, Literal["outputs", "mixed"]]


@dataclass(frozen=True, slots=True)
class Place:
    """Where an array begins in a file, and its shape."""

    start: int
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class OutputGradients:
    """Of one linear layer: `squares` of the gradients g at its outputs, float32 [tokens] or [tokens, experts used],
    |g|^2 over their `mean`; `moments`: the sum of g g^T over the tokens, float32 [n, n] for each group of n
    neighbouring outputs; of experts and of the output layer there are none."""

    squares: Floats
    mean: float
    moments: tuple[Floats, ...] = ()


class GradientFile:
    """Arrays in a file without a name; threads may read at once."""

    def __init__(self, folder: Path | None) -> None:
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 (closed by `close`)
        self._end = 0

    def write(self, array: Floats) -> Place:
        data = np.ascontiguousarray(array, np.float32).reshape(-1).view(np.uint8)
        place, done = Place(self._end, array.shape), 0
        while done < len(data):
            done += os.pwrite(self._file.fileno(), data[done:].data, self._end + done)
        self._end += done
        return place

    def read(self, place: Place) -> Floats:
        array = np.empty(place.shape, np.float32)
        data, done = array.reshape(-1).view(np.uint8), 0
        while done < len(data):
            done += os.preadv(self._file.fileno(), [data[done:].data], place.start + done)
        return array

    def close(self) -> None:
        self._file.close()


@dataclass(frozen=True, slots=True)
class Passed:
    """What has come of some windows that were gone through backwards: the `gradient` [tokens, d] at what entered the
    slice, or, of a slice that begins with tokens, the `embedding`'s |g|^2 [tokens]; `squares` by weight; and the
    `nodes` of their sums, arrays in the order of `keys`."""

    gradient: Floats | None
    embedding: Floats | None
    squares: dict[str, Floats]
    keys: list[_Key]
    nodes: list[Node]


class GradientPasses:
    """Runs slices of a model, forward and backward, on some of `windows` int32 [n, length]."""

    def __init__(self, layers: Layers, windows: Ids) -> None:
        self.layers, self.windows = layers, windows
        self._threads = layers.threads

    @property
    def passes(self) -> GradientPasses:
        return self

    def forward(self, layer: int, span: range, hidden: Floats | None) -> Floats:
        part, here = self.layers.part(layer), self.windows[span.start : span.stop]
        output = Walk(part, self.layers.weights(part), here, hidden, self._threads).output()
        give_back()
        return output

    def from_labels(self, span: range, hidden: Floats) -> Passed:
        """The gradient of the last hidden states, labels drawn window by window."""
        part = self.layers.part(self.layers.count)
        weights, length = self.layers.weights(part), self.windows.shape[1]

        def back(number: int) -> _Batch:
            rows = slice((number - span.start) * length, (number - span.start + 1) * length)
            tape = Tape(part, weights, 1, length)
            chances = tape.forward(self.windows[:0], hidden[rows])
            chances -= chances.max(axis=-1, keepdims=True)
            np.exp(chances, out=chances)
            chances /= chances.sum(axis=-1, keepdims=True)
            chances[np.arange(length), draw(chances, number)] -= 1
            seen = _Seen(moments=False)
            return _Batch(rows, tape.backward(chances, seen.see), seen)

        return self._gone_through(back, span, hidden, 0)

    def back(self, layer: int, span: range, entered: Floats | None, gradient: Floats) -> Passed:
        part = self.layers.part(layer)
        weights, length = self.layers.weights(part), self.windows.shape[1]
        at_once = at_a_time(length)

        def back(number: int) -> _Batch:
            here = self.windows[number : min(number + at_once, span.stop)]
            first = (number - span.start) * length
            rows = slice(first, first + here.size)
            tape = Tape(part, weights, len(here), length)
            tape.prepare(here, None if entered is None else entered[rows])
            seen = _Seen()
            entering = tape.backward(gradient[rows], seen.see, seen.attended)
            return _Batch(rows, entering, seen, tape.embedding)

        starts = range(span.start, span.stop, at_once)
        return self._gone_through(back, starts, gradient, span.start // (LEAF * at_once))

    def _gone_through(
        self, back: Callable[[int], _Batch], starts: Sequence[int], gradient: Floats, leaf: int
    ) -> Passed:
        """What comes out of a slice, batches being gone through side by side and summed in their order, so that sums
        do not depend on the threads. `leaf`: the number of the first."""
        result, whole = np.empty_like(gradient), _Whole(len(gradient), self._threads, leaf)
        embedding: Floats | None = None
        entering = True
        for some in range(0, len(starts), self._threads):
            batches = in_threads(back, starts[some : some + self._threads], self._threads)
            whole.add(batches)
            for passed in batches:
                if passed.gradient is not None:
                    result[passed.rows] = passed.gradient
                    continue
                entering = False
                if passed.embedding is not None:
                    if embedding is None:
                        embedding = np.zeros(len(gradient), np.float32)
                    embedding[passed.rows] = np.square(passed.embedding).sum(axis=-1)
        found = whole.finish()
        give_back()
        return Passed(result if entering else None, embedding, whole.squares, whole.keys, found)


class _HasPasses(Protocol):
    @property
    def passes(self) -> GradientPasses: ...


@dataclass(frozen=True, slots=True)
class Forward:
    """`span`: of the windows; `hidden`: theirs."""

    layer: int
    span: range
    hidden: Floats | None

    def do(self, site: _HasPasses) -> Floats:
        return site.passes.forward(self.layer, self.span, self.hidden)


@dataclass(frozen=True, slots=True)
class FromLabels:
    span: range
    hidden: Floats

    def do(self, site: _HasPasses) -> Passed:
        return site.passes.from_labels(self.span, self.hidden)


@dataclass(frozen=True, slots=True)
class Back:
    layer: int
    span: range
    entered: Floats | None
    gradient: Floats

    def do(self, site: _HasPasses) -> Passed:
        return site.passes.back(self.layer, self.span, self.entered, self.gradient)


class Gradients:
    """The output gradients of every linear layer, by weight, on every `every`th of `windows` int32 [n, length].
    `folder`: where the file is. `team`: who runs the passes, with `windows[::every]`; this process alone, if None."""

    def __init__(
        self,
        layers: Layers,
        windows: Ids,
        folder: Path | None = None,
        *,
        every: int = 1,
        team: Team | None = None,
    ) -> None:
        self._layers, self._threads = layers, layers.threads
        self._count, self._every = len(windows), every
        self.windows = windows[::every]
        self._team = team or Alone(GradientPasses(layers, self.windows))
        self._spans = spans(self.windows, LEAF, self._team.size)
        self._file = GradientFile(folder)
        self._squares: dict[str, Floats] = {}
        self.embedding: Floats | None = None
        """|g|^2 of the gradients g at the tokens' embeddings, float32 [tokens]."""
        self._means: dict[str, float] = {}
        self._moments: dict[_Key, list[Place]] = {}

    def __enter__(self) -> Gradients:
        return self

    def __exit__(self, *problem: object) -> None:
        self._file.close()

    def measure(self, progress: Progress = SILENT, first: int = 0) -> None:
        """Run the passes; layers before the `first` are not gone through backwards."""
        layers = self._layers.count
        progress.start("Measuring gradients", 2 * layers + 1 - min(first, layers))
        places, hidden = [], None
        for layer in range(layers):
            hidden = self._forward(layer, hidden)
            places.append(self._file.write(hidden))
            progress.advance(1)
        assert hidden is not None
        gradient = self._passed(self._each(lambda span, rows: FromLabels(span, hidden[rows])))
        progress.advance(1)
        for layer in range(layers - 1, first - 1, -1):
            assert gradient is not None
            entered, reached = self._file.read(places[layer - 1]) if layer else None, gradient
            gradient = self._passed(self._each(partial(_back, layer, entered, reached)))
            progress.advance(1)

    def _each(self, message: Callable[[range, slice], Message]) -> list[Message | None]:
        """A message to each place that has windows, for these and the rows of their tokens."""
        length = self.windows.shape[1]
        return [
            message(span, slice(span.start * length, span.stop * length)) if span else None
            for span in self._spans
        ]

    def _forward(self, layer: int, hidden: Floats | None) -> Floats:
        def message(span: range, rows: slice) -> Forward:
            return Forward(layer, span, None if hidden is None else hidden[rows])

        return _joined(self._team.step(self._each(message)))

    def of(self, name: str) -> OutputGradients | None:
        """Those of a weight, if its layer has been gone through."""
        if name not in self._squares:
            return None
        moments = tuple(map(self._file.read, self._moments.get((name, "outputs"), [])))
        return OutputGradients(self._squares[name], self._means[name], moments)

    def mixed(self, name: str) -> Floats | None:
        """Of a layer that makes attention's values: the sum of |g|^2 x x^T over heads and every `MIXED`th position,
        float32 [in, in], where attention mixes its inputs to x and g is the gradient of what a head makes of them.

        An error of a value counts with those of the other values that it is mixed with: what they have in common stays.
        """
        places = self._moments.get((name, "mixed"))
        return None if places is None else self._file.read(places[0])

    def counting(self, part: Graph, plain: float) -> dict[str, Floats]:
        """How much each token of all windows counts for the weights of a slice: all alike in the part `plain` of the
        sum. Those of windows without gradients count 1, the mean."""
        return {
            name: self._spread(np.float32(plain) + np.float32(1 - plain) * self._squares[name])
            for name in multiplied(part)
            if name in self._squares
        }

    def _spread(self, known: Floats) -> Floats:
        length = self.windows.shape[1]
        counts = np.ones((self._count, length, *known.shape[1:]), np.float32)
        counts[:: self._every] = known.reshape(-1, length, *known.shape[1:])
        return counts.reshape(-1, *known.shape[1:])

    def _passed(self, messages: Sequence[Message | None]) -> Floats | None:
        """The gradient that comes out of a slice; what it was like on the way is kept."""
        found: list[Passed] = [passed for passed in self._team.step(messages) if passed is not None]
        for name in found[0].squares:
            squares = _joined([passed.squares[name] for passed in found])
            mean = float(squares.mean(dtype=np.float64))
            if mean > 0 and np.isfinite(mean):
                self._squares[name], self._means[name] = squares / np.float32(mean), mean
        tree = Tree()
        for passed in found:
            tree.extend(passed.nodes)
            passed.nodes.clear()
        if tree.nodes:
            self._keep(found[0].keys, tree.total())
        embedding = [passed.embedding for passed in found if passed.embedding is not None]
        if embedding:
            self.embedding = _joined(embedding)
        entering = [passed.gradient for passed in found if passed.gradient is not None]
        give_back()
        return _joined(entering) if entering else None

    def _keep(self, keys: Sequence[_Key], totals: Sequence[Floats]) -> None:
        groups_of: dict[_Key, list[Floats]] = {}
        for key, total in zip(keys, totals, strict=True):
            groups_of.setdefault(key, []).append(mirror(total))
        for key, totals_of in groups_of.items():
            if key[0] in self._squares and all(np.trace(group) > 0 for group in totals_of):
                self._moments[key] = [self._file.write(group) for group in totals_of]


def _back(layer: int, entered: Floats | None, gradient: Floats, span: range, rows: slice) -> Back:
    return Back(layer, span, None if entered is None else entered[rows], gradient[rows])


def at_a_time(length: int) -> int:
    """Windows of a batch."""
    return max(1, BATCH // length)


def spans(windows: Ids, leaf: int, places: int, extra: int = 0) -> list[range]:
    """The windows of each place: whole leaves, of `leaf` batches each; of the last one fewer, by `extra` windows."""
    size = leaf * at_a_time(windows.shape[1])
    parts = shares(-(-len(windows) // size), places, extra // size)
    return [range(part.start * size, min(part.stop * size, len(windows))) for part in parts]


def _joined(parts: Sequence[Floats | None]) -> Floats:
    given = [part for part in parts if part is not None]
    return given[0] if len(given) == 1 else np.concatenate(given)


def draw(chances: Floats, seed: int) -> npt.NDArray[np.int64]:
    """A label for each row of `chances` [rows, labels], which sum to 1."""
    limits = np.random.default_rng([_SEED, seed]).random(len(chances), np.float32)
    labels = []
    for row, limit in zip(chances, limits, strict=True):
        reached = np.cumsum(row)
        labels.append(np.searchsorted(reached, limit * reached[-1], side="right"))
    return np.asarray(np.minimum(labels, chances.shape[-1] - 1), np.int64)


class _Seen:
    """The gradients of one batch: `squares` by token; `rows` [rows, n] whose second moments are wanted."""

    def __init__(self, *, moments: bool = True) -> None:
        self._wanted = moments
        self.squares: dict[str, Floats] = {}
        self.rows: dict[_Key, Floats] = {}

    def see(self, name: str, x: Floats, g: Floats, ids: Ids | None) -> None:
        self.squares[name] = np.einsum("...i,...i->...", g, g)
        if ids is None and self._wanted:
            self.rows[name, "outputs"] = g

    def attended(self, name: str, x: Floats, g: Floats, weights: Floats) -> None:
        windows, heads = weights.shape[:2]
        g, weights = g[:, :, MIXED - 1 :: MIXED], weights[:, :, MIXED - 1 :: MIXED]
        sizes = np.sqrt(np.einsum("...i,...i->...", g, g))
        mixed = np.empty((*sizes.shape, x.shape[-1]), np.float32)
        for window in range(windows):
            for head in range(heads):
                native.product(weights[window, head], x[window], mixed[window, head])
        mixed *= sizes[..., None]
        self.rows[name, "mixed"] = mixed.reshape(-1, x.shape[-1])


@dataclass(frozen=True, slots=True)
class _Batch:
    """Windows that were gone through, and their `rows`."""

    rows: slice
    gradient: Floats | None
    seen: _Seen
    embedding: Floats | None = None


class _Whole:
    """What batches add up to; `leaf`: the number of their first leaf."""

    def __init__(self, tokens: int, threads: int, leaf: int) -> None:
        self._tokens, self._threads = tokens, threads
        self._leaf, self._batches = leaf, 0
        self._tree, self._own = Tree(), list[Floats]()
        self._spans: list[slice] = []
        self.squares: dict[str, Floats] = {}
        self.keys: list[_Key] = []
        """Of the sums, one after another: a key comes once for each group of outputs."""

    def add(self, batches: Sequence[_Batch]) -> None:
        for passed in batches:
            for name, squares in passed.seen.squares.items():
                if name not in self.squares:
                    self.squares[name] = np.zeros((self._tokens, *squares.shape[1:]), np.float32)
                self.squares[name][passed.rows] = squares
        while batches:
            room = LEAF - self._batches
            self._add_to_leaf(batches[:room])
            batches = batches[room:]

    def _add_to_leaf(self, batches: Sequence[_Batch]) -> None:
        if not self.keys:
            for key, rows in batches[0].seen.rows.items():
                columns = rows.shape[-1]
                for span in groups(columns) if key[1] == "outputs" else [slice(0, columns)]:
                    self.keys.append(key)
                    self._spans.append(span)
        if not self._own:
            sizes = [span.stop - span.start for span in self._spans]
            self._own = [np.zeros((size, size), np.float32) for size in sizes]
        jobs = [
            (key, span, total, first)
            for key, span, total in zip(self.keys, self._spans, self._own, strict=True)
            for first in range(0, len(total), BLOCK)
        ]

        def add(job: tuple[_Key, slice, Floats, int]) -> None:
            key, span, total, first = job
            stop = min(first + BLOCK, len(total))
            for passed in batches:
                x = passed.seen.rows[key][:, span]
                native.product(
                    x[:, first:stop].T, x[:, first:], total[first:stop, first:], add=True, upper=True
                )

        in_threads(add, jobs, self._threads)
        self._batches += len(batches)
        if self._batches == LEAF:
            self._end_leaf()

    def _end_leaf(self) -> None:
        if self._own:
            self._tree.add(self._leaf, self._own)
        self._leaf, self._batches, self._own = self._leaf + 1, 0, []

    def finish(self) -> list[Node]:
        """The nodes of the sums, their upper halves."""
        if self._batches:
            self._end_leaf()
        return self._tree.nodes


def groups(outputs: int) -> list[slice]:
    """Neighbouring outputs whose gradients have second moments together."""
    count = -(-outputs // MOST_OUTPUTS)
    edges = [outputs * number // count for number in range(count + 1)]
    return [slice(first, stop) for first, stop in pairwise(edges)]
