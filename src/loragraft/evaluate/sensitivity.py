"""What rounding one tensor alone costs: the divergence that it causes, on a text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from loragraft.arrays import Doubles
from loragraft.backends.batch import Piece
from loragraft.backends.program import Options
from loragraft.evaluate.divergence import kl
from loragraft.evaluate.reading import Opening
from loragraft.evaluate.uncertainty import Estimate, mean
from loragraft.formats.gguf.model import open_gguf
from loragraft.formats.source import TensorSource
from loragraft.inference.devices import backend_named
from loragraft.inference.measurement import Measurement, Text, Window
from loragraft.inference.model import Model
from loragraft.inference.perplexity import log_softmax
from loragraft.inference.spreading import each_window
from loragraft.progress import SILENT, Progress
from loragraft.system.workers import Workers


def sensitivities(
    full: Model | None,
    rough: Mapping[str, TensorSource],
    text: Text,
    how: Measurement,
    *,
    files: tuple[Opening, str] | None = None,
    workers: Workers | None = None,
    progress: Progress = SILENT,
) -> dict[str, Estimate]:
    """For every tensor of `rough`, the mean KL divergence from `full` of that model with this one tensor in place of
    its own. One reading of the text per tensor, on the native backend.

    All read one window before the next is read, so that only one window's logits are kept. Activations are not rounded:
    that is the cost of running quantized weights, the same for all types, and would hide what a tensor itself costs.
    `workers`, if any, open `files`: those of the model, and of `rough`; `full` is not needed then.
    """
    values: dict[str, list[Doubles]] = {name: [] for name in rough}
    progress.start("Measuring tensors", len(text) * (len(rough) + 1))

    def take(window: dict[str, Doubles]) -> None:
        for name, own in window.items():
            values[name].append(own)
        if workers is not None:
            progress.advance(len(rough) + 1)

    def here() -> Callable[[Window], dict[str, Doubles]]:
        assert full is not None
        return _reader(full, rough, how.threads, progress)

    there = partial(_opened, files, tuple(rough))
    each_window(text, here, there, take, how, workers=workers, progress=progress)
    return {name: mean(np.stack(own)) for name, own in values.items()}


def _opened(
    files: tuple[Opening, str] | None, names: tuple[str, ...], how: Measurement
) -> Callable[[Window], dict[str, Doubles]]:
    assert files is not None
    full, rough = files
    tensors = open_gguf(Path(rough)).tensors
    return _reader(full.load(how.threads), {name: tensors[name] for name in names}, how.threads, SILENT)


def _reader(
    full: Model, rough: Mapping[str, TensorSource], threads: int | None, progress: Progress
) -> Callable[[Window], dict[str, Doubles]]:
    """The divergences that each tensor causes in a window."""
    backend, options = backend_named("native"), Options(threads=threads, activations="f32")

    def read(window: Window) -> dict[str, Doubles]:
        reference = log_softmax(window.read_by(full))
        progress.advance(1)
        found = {}
        for name, tensor in rough.items():
            program = backend.prepare(full.graph, {**full.source.tensors, name: tensor}, options)
            piece = Piece(program.open_sequence(), window.ids, wants=window.scored.start)
            logits = program.run([piece])[: len(window.targets)]
            found[name] = kl(reference, log_softmax(logits))
            progress.advance(1)
        return found

    return read
