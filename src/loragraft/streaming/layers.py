"""The model that a plan will write, run a layer at a time: hidden states of windows go in and come out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import numpy as np

from loragraft.archs.graphs import build_graph
from loragraft.arrays import Floats, Ids
from loragraft.backends.batch import Piece
from loragraft.backends.program import Backend, Options, Program
from loragraft.formats.gguf.scales import companion
from loragraft.graph.ops import Graph, Op, TensorFact
from loragraft.graph.slices import slice_graph
from loragraft.streaming.plan import WritePlan
from loragraft.streaming.rows import floats_of
from loragraft.streaming.steps import Chunk, Step, chunks
from loragraft.streaming.sweep import sweep

#: Tokens that go through a layer at once.
BATCH = 2048


class Layers:
    """Slices of the merged model; `part(count)` is what follows the last layer."""

    def __init__(self, plan: WritePlan, backend: Backend, threads: int) -> None:
        self.steps = {step.name: step for step in plan.steps}
        self.graph = build_graph(plan.metadata, _facts(self.steps))
        self.count = len(self.graph.cuts) - 1
        self._backend, self.threads = backend, threads

    def part(self, layer: int) -> Graph:
        return slice_graph(self.graph, layer, layer + 1 if layer < self.count else None)

    def weights(self, part: Graph) -> dict[str, Floats]:
        """The merged weights of a slice in float32, and its other tensors."""
        return {name: self._floats(self.steps[name]) for name in part.tensors}

    def _floats(self, step: Step) -> Floats:
        out = np.empty((step.source.n_rows, step.source.columns), np.float32)

        def read(chunk: Chunk) -> None:
            out[chunk.start : chunk.stop] = floats_of(chunk)

        sweep(chunks(step), read, threads=self.threads)
        scale = self.steps.get(companion(step.name, "scale"))
        if scale is not None and step.copies:
            values = scale.source.rows(0, 1).view(np.float32).reshape(-1)
            out.reshape(len(values), -1)[:] *= values[:, None]
        return out.reshape(step.source.shape)

    def run(
        self,
        part: Graph,
        weights: Mapping[str, Floats],
        windows: Ids,
        hidden: Floats | None,
        *,
        wants: Literal["all", "none"] = "none",
    ) -> Floats:
        """What `part` with `weights` makes of the hidden states float32 [n * length, d] of `windows` int32 [n, length],
        batch by batch."""
        at_once = max(1, BATCH // windows.shape[1])
        return np.concatenate(list(self.batches(part, weights, windows, hidden, at_once, wants=wants)))

    def batches(
        self,
        part: Graph,
        weights: Mapping[str, Floats],
        windows: Ids,
        hidden: Floats | None,
        at_once: int,
        *,
        wants: Literal["all", "none"] = "none",
    ) -> Iterator[Floats]:
        """As `run`, but yields what it gives of `at_once` windows at a time."""
        program = self._program(part, weights)
        count, length = windows.shape
        for first in range(0, count, at_once):
            here = windows[first : first + at_once]
            pieces = [Piece(program.open_sequence(), window, wants=wants) for window in here]
            rows = slice(first * length, (first + len(here)) * length)
            yield program.run(pieces, None if hidden is None else hidden[rows])
            for piece in pieces:
                program.close_sequence(piece.sequence)

    def _program(self, part: Graph, weights: Mapping[str, Floats]) -> Program:
        options = Options(threads=self.threads, activations="f32", keys_values="f32")
        return self._backend.prepare(part, weights, options)


def multiplied(part: Graph) -> list[str]:
    """The weights of a slice's linear layers."""
    products = (Op.MATMUL, Op.EXPERTS_MATMUL)
    return list(dict.fromkeys(node.weights[0] for node in part.nodes if node.op in products))


def _facts(steps: Mapping[str, Step]) -> dict[str, TensorFact]:
    """The merged model's tensors, without the scales that belong to stored weights."""
    scales = {companion(name, part) for name in steps for part in ("scale", "input_scale")}
    return {name: TensorFact(step.source.shape, "F32") for name, step in steps.items() if name not in scales}
