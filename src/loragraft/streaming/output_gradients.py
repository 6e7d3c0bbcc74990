"""The gradients that reach the outputs of linear layers, layer by layer, in bounded memory.

The loss is that of labels drawn from the model's own predictions, so that the second moments of its gradients are the
Fisher information: how much the predictions move with the outputs. The hidden states that enter each layer are kept in
a file without a name; then each layer, from the last to the first, is run again and gone through backwards
(`backends.gradients`). What is kept of a layer's gradients, squares by token and second moments, goes to the file too.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from loragraft.arrays import Floats, Ids
from loragraft.backends.gradients import Tape
from loragraft.graph.ops import Graph
from loragraft.progress import SILENT, Progress
from loragraft.quants import native
from loragraft.streaming.layers import Layers, multiplied
from loragraft.streaming.moments import BLOCK, mirror
from loragraft.streaming.walk import Walk
from loragraft.system.memory import give_back
from loragraft.system.threads import in_threads

#: Tokens that go through a layer at once, forward and backward.
BATCH = 512
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


class Gradients:
    """The output gradients of every linear layer, by weight, on every `every`th of `windows` int32 [n, length].
    `folder`: where the file is."""

    def __init__(self, layers: Layers, windows: Ids, folder: Path | None = None, *, every: int = 1) -> None:
        self._layers, self._threads = layers, layers.threads
        self._count, self._every = len(windows), every
        self.windows = windows[::every]
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

    def measure(self, progress: Progress = SILENT) -> None:
        """Run the passes."""
        layers = self._layers.count
        progress.start("Measuring gradients", 2 * layers + 1)
        places, hidden = [], None
        for layer in range(layers):
            part = self._layers.part(layer)
            hidden = Walk(part, self._layers.weights(part), self.windows, hidden, self._threads).output()
            places.append(self._file.write(hidden))
            give_back()
            progress.advance(1)
        assert hidden is not None
        gradient = self._from_labels(hidden)
        give_back()
        progress.advance(1)
        for layer in range(layers - 1, -1, -1):
            entered = self._file.read(places[layer - 1]) if layer else None
            gradient = self._back(self._layers.part(layer), entered, gradient)
            give_back()
            progress.advance(1)

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

    def _from_labels(self, hidden: Floats) -> Floats:
        """The gradient of the last hidden states, labels drawn window by window."""
        part = self._layers.part(self._layers.count)
        weights, length = self._layers.weights(part), self.windows.shape[1]

        def back(first: int) -> _Passed:
            tape = Tape(part, weights, 1, length)
            chances = tape.forward(self.windows[:0], hidden[first : first + length]).copy()
            chances -= chances.max(axis=-1, keepdims=True)
            np.exp(chances, out=chances)
            chances /= chances.sum(axis=-1, keepdims=True)
            chances[np.arange(length), draw(chances, first // length)] -= 1
            seen = _Seen(moments=False)
            return _Passed(first, tape.backward(chances, seen.see), seen)

        return self._gone_through(back, range(0, len(hidden), length), hidden)

    def _back(self, part: Graph, entered: Floats | None, gradient: Floats) -> Floats:
        weights = self._layers.weights(part)
        count, length = self.windows.shape
        at_once = max(1, BATCH // length)

        def back(first: int) -> _Passed:
            here = self.windows[first // length :][:at_once]
            rows = slice(first, first + here.size)
            tape = Tape(part, weights, len(here), length)
            tape.prepare(here, None if entered is None else entered[rows])
            seen = _Seen()
            entering = tape.backward(gradient[rows], seen.see, seen.attended)
            return _Passed(first, entering, seen, tape.embedding)

        return self._gone_through(back, range(0, count * length, at_once * length), gradient)

    def _gone_through(
        self, back: Callable[[int], _Passed], starts: Sequence[int], gradient: Floats
    ) -> Floats:
        """The gradient that comes out of a slice, batches being gone through side by side and summed in their order,
        so that sums do not depend on the threads."""
        result, whole = np.empty_like(gradient), _Whole(len(gradient), self._threads)
        for some in range(0, len(starts), self._threads):
            batches = in_threads(back, starts[some : some + self._threads], self._threads)
            whole.add(batches)
            for passed in batches:
                if passed.gradient is not None:
                    result[passed.first : passed.first + len(passed.gradient)] = passed.gradient
                elif passed.embedding is not None:
                    if self.embedding is None:
                        self.embedding = np.zeros(len(gradient), np.float32)
                    squares = np.square(passed.embedding).sum(axis=-1)
                    self.embedding[passed.first : passed.first + len(squares)] = squares
        whole.finish()
        self._keep(whole)
        return result

    def _keep(self, sink: _Whole) -> None:
        for name, squares in sink.squares.items():
            mean = float(squares.mean(dtype=np.float64))
            if mean > 0 and np.isfinite(mean):
                self._squares[name], self._means[name] = squares / np.float32(mean), mean
        for key, groups_of in sink.moments.items():
            if key[0] in self._squares and all(np.trace(group) > 0 for group in groups_of):
                self._moments[key] = [self._file.write(group) for group in groups_of]


def draw(chances: Floats, seed: int) -> npt.NDArray[np.int64]:
    """A label for each row of `chances` [rows, labels], which sum to 1."""
    reached = np.cumsum(chances, axis=-1)
    limits = np.random.default_rng([_SEED, seed]).random(len(chances), np.float32) * reached[:, -1]
    labels = [np.searchsorted(row, limit, side="right") for row, limit in zip(reached, limits, strict=True)]
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
class _Passed:
    """A batch that was gone through, from row `first` on."""

    first: int
    gradient: Floats | None
    seen: _Seen
    embedding: Floats | None = None


class _Whole:
    """What batches add up to."""

    def __init__(self, tokens: int, threads: int) -> None:
        self._tokens, self._threads = tokens, threads
        self.squares: dict[str, Floats] = {}
        self.moments: dict[_Key, list[Floats]] = {}

    def add(self, batches: Sequence[_Passed]) -> None:
        for passed in batches:
            for name, squares in passed.seen.squares.items():
                if name not in self.squares:
                    self.squares[name] = np.zeros((self._tokens, *squares.shape[1:]), np.float32)
                self.squares[name][passed.first : passed.first + len(squares)] = squares
        jobs = []
        for key, rows in batches[0].seen.rows.items():
            columns = rows.shape[-1]
            spans = groups(columns) if key[1] == "outputs" else [slice(0, columns)]
            if key not in self.moments:
                sizes = [span.stop - span.start for span in spans]
                self.moments[key] = [np.zeros((size, size), np.float32) for size in sizes]
            jobs += [
                (key, span, total, first)
                for span, total in zip(spans, self.moments[key], strict=True)
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

    def finish(self) -> None:
        for totals in self.moments.values():
            for total in totals:
                mirror(total)


def groups(outputs: int) -> list[slice]:
    """Neighbouring outputs whose gradients have second moments together."""
    count = -(-outputs // MOST_OUTPUTS)
    edges = [outputs * number // count for number in range(count + 1)]
    return [slice(first, stop) for first, stop in pairwise(edges)]
