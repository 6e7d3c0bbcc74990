"""`imatrix`: collect an importance matrix, with adapters active if there are any.

For every linear layer the mean square of what meets each column of its weight, as llama-imatrix collects it
(tools/imatrix/imatrix.cpp of llama.cpp): the text is cut into windows, each read on its own with its first token
replaced by BOS; all tokens count; what is left over is dropped. It runs on the reference backend, in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any

import numpy as np
import numpy.typing as npt

from loragraft.backends.reference import ReferenceSession
from loragraft.errors import LoragraftError
from loragraft.evaluate.perplexity import DEFAULT_CONTEXT, count, windows
from loragraft.formats.imatrix import Imatrix
from loragraft.graph.ops import Graph, Op
from loragraft.load import load
from loragraft.models import AdapterArgument
from loragraft.progress import SILENT, Progress

Values = list[npt.NDArray[np.float32]]
OUTPUT = "output.weight"


def imatrix(
    path: str | PathLike[str],
    text: str,
    *,
    adapters: Sequence[AdapterArgument] = (),
    context: int = DEFAULT_CONTEXT,
    limit: int | None = None,
    process_output: bool = False,
    dataset: str = "",
    progress: Progress = SILENT,
) -> Imatrix:
    """The importance matrix of the model at `path` on `text`, in windows of `context` tokens, the first `limit`.

    `process_output`: of the output layer too. `dataset`: what to call the text in the file. Raises LoragraftError for a
    text shorter than two windows, or activations that are not finite.
    """
    model = load(path, adapters, backend="reference")
    session = model.session
    assert isinstance(session, ReferenceSession)
    collector = Collector(model.graph, process_output)
    session.observer = collector.observe
    ids = model.tokenize(text)
    progress.start("Collecting", count(ids, context, limit))
    for window in windows(ids, context, model.window_bos, limit=limit):
        model.logits(window.ids)
        progress.advance(1)
    return collector.result(dataset, count(ids, context, limit), context)


class Collector:
    """Sums squares of the inputs of a graph's linears; `observe` is called after every node."""

    def __init__(self, graph: Graph, process_output: bool) -> None:
        self._graph = graph
        self._process_output = process_output
        self._sums: dict[str, npt.NDArray[np.float64]] = {}
        self._counts: dict[str, npt.NDArray[np.int64]] = {}
        self._tensors = graph.tensors

    def observe(self, index: int, values: Values) -> None:
        node = self._graph.nodes[index]
        if node.op not in (Op.MATMUL, Op.EXPERTS_MATMUL):
            return
        name = node.weights[0]
        if not (name.startswith("blk.") or (self._process_output and name == OUTPUT)):
            return
        shape = self._tensors[name].shape
        experts = shape[0] if node.op is Op.EXPERTS_MATMUL else 1
        sums = self._sums.setdefault(name, np.zeros((experts, shape[-1])))
        counts = self._counts.setdefault(name, np.zeros(experts, np.int64))
        x = values[node.inputs[0]]
        if node.op is Op.MATMUL:
            sums[0] += np.square(x).sum(axis=0)  # float32 within a window, float64 across windows
            counts[0] += len(x)
        else:
            _add_experts(sums, counts, x, values[node.inputs[1]])
        if not np.isfinite(sums).all():
            raise LoragraftError(
                name, "activations that are not finite reach it", hint="is the model intact?"
            )

    def result(self, dataset: str, chunks: int, chunk_size: int) -> Imatrix:
        sums = {name: values.astype(np.float32) for name, values in self._sums.items()}
        return Imatrix(sums, self._counts, [dataset] if dataset else [], chunks, chunk_size)


def _add_experts(
    sums: npt.NDArray[np.float64],
    counts: npt.NDArray[np.int64],
    x: npt.NDArray[np.float32],
    ids: npt.NDArray[Any],
) -> None:
    """x: [T, in], the same for all experts of a token, or [T, k, in]; ids: [T, k]."""
    squares = np.square(x if x.ndim == 3 else x[:, np.newaxis])
    squares = np.broadcast_to(squares, (*ids.shape, x.shape[-1])).reshape(-1, x.shape[-1])
    np.add.at(sums, ids.ravel(), squares)
    np.add.at(counts, ids.ravel(), 1)
