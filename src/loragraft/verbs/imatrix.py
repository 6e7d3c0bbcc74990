"""`imatrix`: collect an importance matrix, with adapters active if there are any.

For every linear layer the mean square of what meets each column of its weight, as llama-imatrix collects it
(tools/imatrix/imatrix.cpp of llama.cpp): the text is cut into windows, each read on its own with its first token
replaced by BOS; all tokens count; what is left over is dropped.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from os import PathLike

import numpy as np
import numpy.typing as npt

from loragraft.adapters.lora import Adapter
from loragraft.archs.graphs import model_graph
from loragraft.arrays import Floats, Ids
from loragraft.backends.batch import Piece
from loragraft.backends.cpu.program import NativeBackend
from loragraft.backends.program import Options
from loragraft.errors import LoragraftError, naming
from loragraft.formats.imatrix import Imatrix
from loragraft.formats.source import ModelSource
from loragraft.graph.slices import slice_graph
from loragraft.inference.adapters import ModelAdapters
from loragraft.inference.measurement import Measurement, Window, measurement
from loragraft.inference.spreading import each_window
from loragraft.inference.tokenizer import Tokenizer
from loragraft.opening import AdapterArguments, load_adapters, open_model
from loragraft.progress import SILENT, Progress
from loragraft.system.mapped import intact
from loragraft.system.threads import thread_count
from loragraft.system.workers import Workers

OUTPUT = "output.weight"


@intact
def imatrix(
    path: str | PathLike[str],
    text: str | Measurement,
    *,
    adapters: AdapterArguments = (),
    process_output: bool = False,
    dataset: str = "",
    workers: Workers | None = None,
    progress: Progress = SILENT,
) -> Imatrix:
    """The importance matrix of the model at `path` on `text`, in windows of 512 tokens if nothing else is said.

    `process_output`: of the output layer too. `dataset`: what to call the text in the file. `workers`: who reads the
    windows; the result is the same for any. Raises TextError for a text shorter than two windows, LoragraftError for
    activations that are not finite.
    """
    how = measurement(text)
    how.only_on("native", "imatrix")
    source, loaded = load_adapters(adapters, open_model(path, dequantize=True))
    for note in [*source.notes, *(note for adapter, _ in loaded for note in adapter.notes)]:
        progress.note(note)
    words = how.read_by(Tokenizer(source.metadata, source.path), source.context_length, progress)
    collected = Collected()

    def take(window: Sums) -> None:
        collected.add(window)
        progress.advance(1)

    progress.start("Collecting", len(words))
    here = partial(_reader, source, loaded, process_output, how)
    there = partial(_opened, os.fspath(path), adapters, process_output)
    each_window(words, here, there, take, how, workers=workers, progress=progress)
    return collected.result(dataset, len(words), words.context)


def _opened(
    path: str, adapters: AdapterArguments, process_output: bool, how: Measurement
) -> Callable[[Window], Sums]:
    return _reader(*load_adapters(adapters, open_model(path, dequantize=True)), process_output, how)


def _reader(
    source: ModelSource, loaded: Sequence[tuple[Adapter, float]], process_output: bool, how: Measurement
) -> Callable[[Window], Sums]:
    """What a window adds to the matrix."""
    graph = model_graph(source)
    if not process_output:  # of its predictions nothing is wanted
        graph = slice_graph(graph, 0, len(graph.cuts) - 1)
    weights = {name: source.tensors[name] for name in graph.tensors}
    options = Options(threads=thread_count(how.threads), activations=how.activations or "auto")
    with naming(source.path):
        program = NativeBackend().prepare(graph, weights, options)
    active = ModelAdapters(program, source, loaded).active
    experts = {name: fact.shape[0] for name, fact in graph.tensors.items() if len(fact.shape) == 3}

    def read(window: Window) -> Sums:
        collector = Collector(experts, process_output)
        program.observer = collector.observe
        with naming(source.path):
            sequence = program.open_sequence()
            program.run([Piece(sequence, window.ids, active, wants="all")])
            program.close_sequence(sequence)
        return collector.sums

    return read


Sums = dict[str, tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]]
"""By weight: sums of squares [experts or 1, in], and how many rows they are of [experts or 1]."""


class Collected:
    """The sums of all windows, added in their order."""

    def __init__(self) -> None:
        self._sums: Sums = {}

    def add(self, window: Sums) -> None:
        for name, (sums, counts) in window.items():
            if name in self._sums:
                self._sums[name][0][:] += sums
                self._sums[name][1][:] += counts
            else:
                self._sums[name] = sums.copy(), counts.copy()

    def result(self, dataset: str, chunks: int, chunk_size: int) -> Imatrix:
        sums = {name: values.astype(np.float32) for name, (values, _) in self._sums.items()}
        counts = {name: counted for name, (_, counted) in self._sums.items()}
        return Imatrix(sums, counts, [dataset] if dataset else [], chunks, chunk_size)


class Collector:
    """Sums squares of the inputs of linear layers; `observe` is a `backends.program.Observer`.

    `experts`: how many there are of each weight that has some.
    """

    def __init__(self, experts: Mapping[str, int], process_output: bool) -> None:
        self._experts = experts
        self._process_output = process_output
        self.sums: Sums = {}

    def observe(self, weights: tuple[str, ...], x: Floats, ids: Ids | None) -> None:
        wanted = [n for n in weights if n.startswith("blk.") or (self._process_output and n == OUTPUT)]
        if not wanted:
            return
        if ids is None:
            sums, counts = _squares(x)[np.newaxis], np.array([len(x)])
        else:
            sums, counts = _of_experts(x, ids, self._experts[wanted[0]])
        if not np.isfinite(sums).all():
            raise LoragraftError(
                wanted[0], "activations that are not finite reach it", hint="is the model intact?"
            )
        for name in wanted:  # float32 within a batch, float64 across batches
            if name in self.sums:
                self.sums[name][0][:] += sums
                self.sums[name][1][:] += counts
            else:
                self.sums[name] = sums.astype(np.float64), counts.copy()


def _squares(x: Floats) -> Floats:
    """The sum of squares of each column [in] of x [n, in]."""
    return np.asarray(np.einsum("ij,ij->j", x, x))


def _of_experts(x: Floats, ids: Ids, experts: int) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Sums [experts, in] and counts [experts]. x: [T, in], the same for all experts of a token, or [T, k, in];
    ids: [T, k]."""
    sums = np.zeros((experts, x.shape[-1]), np.float32)
    for expert in np.unique(ids):
        token, place = np.nonzero(ids == expert)
        sums[expert] = _squares(x[token, place] if x.ndim == 3 else x[token])
    return sums, np.bincount(ids.ravel(), minlength=experts)
