"""The second moments of the inputs of linear layers, summed while a program runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from loragraft.backends.batch import Floats, Ids
from loragraft.errors import LoragraftError
from loragraft.graph.ops import Graph
from loragraft.streaming.layers import Layers, SeenError, multiplied

#: Inputs that wait to be summed, at most.
MOST_WAITING = 3


@dataclass
class InputMoments:
    """Of what the weights `names` were multiplied by: `sums` of x x^T, float32 [matrices, in, in] (one matrix, or one
    for each expert), and how many x there were, int64 [matrices]."""

    names: tuple[str, ...]
    sums: Floats
    counts: npt.NDArray[np.int64]

    def mean_squares(self, matrix: int) -> Floats:
        """float32 [in]."""
        squares = np.diagonal(self.sums[matrix]) / max(int(self.counts[matrix]), 1)
        return np.ascontiguousarray(squares, np.float32)


class MomentSums:
    """`observe` is shown the input of every product (`backends.program.Observer`). `experts`: how many there are of
    each weight that has some. `weights`: how much each token counts, float32 [tokens] or [tokens, experts used], for
    weights that do not count all alike; several with one input take the mean of theirs."""

    def __init__(self, experts: Mapping[str, int], weights: Mapping[str, Floats] | None = None) -> None:
        self._experts = experts
        self._weights = weights or {}
        self._by_input: dict[str, InputMoments] = {}
        self._rows: dict[str, int] = {}
        # One thread sums while the program runs on: in order, so that sums do not depend on chance.
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="loragraft")
        self._waiting: deque[Future[None]] = deque()

    def __enter__(self) -> MomentSums:
        return self

    def __exit__(self, *problem: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def observe(self, names: tuple[str, ...], x: Floats, ids: Ids | None) -> None:
        moments = self._moments(names, x.shape[-1])
        counts = self._counting(names, len(x))
        own = x.copy(), None if ids is None else ids.copy()  # they are valid during the call only
        while len(self._waiting) >= MOST_WAITING:
            self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(self._sum, moments, *own, counts))

    def _sum(self, moments: InputMoments, x: Floats, ids: Ids | None, counts: Floats | None) -> None:
        if ids is None:
            self._add(moments, 0, x.reshape(-1, x.shape[-1]), counts)
            return
        for expert in np.unique(ids):
            token, place = np.nonzero(ids == expert)
            own = None if counts is None else counts[token, place]
            self._add(moments, int(expert), x[token, place] if x.ndim == 3 else x[token], own)

    def result(self) -> list[InputMoments]:
        """In the order in which the inputs were first seen. Raises LoragraftError for inputs that are not finite."""
        while self._waiting:
            self._waiting.popleft().result()
        return list({id(moments): moments for moments in self._by_input.values()}.values())

    def _moments(self, names: tuple[str, ...], columns: int) -> InputMoments:
        if names[0] not in self._by_input:
            matrices = self._experts.get(names[0], 1)
            sums = np.zeros((matrices, columns, columns), np.float32)
            moments = InputMoments(names, sums, np.zeros(matrices, np.int64))
            self._by_input |= dict.fromkeys(names, moments)
        return self._by_input[names[0]]

    def _counting(self, names: tuple[str, ...], rows: int) -> Floats | None:
        """How much each of the next rows counts."""
        first = self._rows.get(names[0], 0)
        self._rows[names[0]] = first + rows
        known = [self._weights[name][first : first + rows] for name in names if name in self._weights]
        return np.asarray(sum(known) / np.float32(len(known)), np.float32) if known else None

    def _add(self, moments: InputMoments, matrix: int, x: Floats, counts: Floats | None) -> None:
        x = np.ascontiguousarray(x, np.float32)
        if counts is not None:
            x = x * np.sqrt(counts)[:, None]
        moments.sums[matrix] += x.T @ x  # a symmetric product: NumPy asks BLAS for one triangle
        moments.counts[matrix] += len(x)
        if not np.isfinite(np.diagonal(moments.sums[matrix])).all():
            raise LoragraftError(
                moments.names[0], "activations that are not finite reach it", hint="is the model intact?"
            )


class MomentWatch:
    """Sums the inputs of `products`, and ends a batch once all were seen: what the last one gives is not wanted."""

    def __init__(self, sums: MomentSums, products: Sequence[str]) -> None:
        self._sums, self._products = sums, products
        self._left: dict[str, int] = {}

    def begin(self, rows: int) -> None:
        self._left = dict.fromkeys(self._products, rows)

    def observe(self, names: tuple[str, ...], x: Floats, ids: Ids | None) -> None:
        self._sums.observe(names, x, ids)
        for name in names:
            self._left[name] -= len(x)
        if not any(self._left.values()):
            raise SeenError


def input_moments(
    layers: Layers,
    part: Graph,
    weights: Mapping[str, Floats],
    windows: Ids,
    hidden: Floats | None,
    counting: Mapping[str, Floats],
    *,
    last: bool,
) -> list[InputMoments]:
    """Of the products of a slice, or of what follows the `last` layer, on `windows`, whose hidden states enter it;
    `counting` as for `MomentSums`."""
    experts = {name: len(values) for name, values in weights.items() if values.ndim == 3}
    with MomentSums(experts, counting) as sums:
        watch = MomentWatch(sums, multiplied(part))
        layers.run(part, weights, windows, hidden, wants="all" if last else "none", watch=watch)
        return sums.result()
