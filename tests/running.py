"""Graphs run once, by any backend."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from loragraft.backends.batch import Piece
from loragraft.backends.program import Backend, Options, Program, Weights
from loragraft.graph.ops import Graph

#: What tests of products want: keys and values are not rounded.
EXACT = Options(keys_values="f32")


def all_logits(
    program: Program, ids: npt.NDArray[np.int32], parts: Sequence[int] = ()
) -> npt.NDArray[np.float32]:
    """Of every token, read as one sequence, in one batch or cut at the indices `parts`."""
    sequence = program.open_sequence()
    ids = np.asarray(ids, np.int32)
    logits = [program.run([Piece(sequence, part, wants="all")]) for part in np.split(ids, parts)]
    program.close_sequence(sequence)
    return np.concatenate(logits)


def logits_of(
    backend: Backend, graph: Graph, weights: Weights, ids: npt.NDArray[np.int32], options: Options = EXACT
) -> npt.NDArray[np.float32]:
    """Of every token of one sequence."""
    return all_logits(backend.prepare(graph, weights, options), ids)
