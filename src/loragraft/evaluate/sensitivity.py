"""What rounding one tensor alone costs: the divergence that it causes, on a text."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from loragraft.backends.batch import Piece
from loragraft.backends.program import Options
from loragraft.evaluate.divergence import kl
from loragraft.evaluate.uncertainty import Estimate, mean
from loragraft.formats.source import TensorSource
from loragraft.inference.devices import backend_named
from loragraft.inference.measurement import Text
from loragraft.inference.model import Model
from loragraft.inference.perplexity import log_softmax
from loragraft.progress import SILENT, Progress


def sensitivities(
    full: Model,
    rough: Mapping[str, TensorSource],
    text: Text,
    *,
    threads: int | None = None,
    progress: Progress = SILENT,
) -> dict[str, Estimate]:
    """For every tensor of `rough`, the mean KL divergence from `full` of that model with this one tensor in place of
    its own. One reading of the text per tensor, on the native backend.

    All read one window before the next is read, so that only one window's logits are kept. Activations are not rounded:
    that is the cost of running quantized weights, the same for all types, and would hide what a tensor itself costs.
    """
    backend, options = backend_named("native"), Options(threads=threads, activations="f32")
    values: dict[str, list[np.ndarray]] = {name: [] for name in rough}
    progress.start("Measuring tensors", len(text) * (len(rough) + 1))
    for window in text:
        reference = log_softmax(window.read_by(full))
        progress.advance(1)
        for name, tensor in rough.items():
            program = backend.prepare(full.graph, {**full.source.tensors, name: tensor}, options)
            piece = Piece(program.open_sequence(), window.ids, wants=window.scored.start)
            logits = program.run([piece])[: len(window.targets)]
            values[name].append(kl(reference, log_softmax(logits)))
            progress.advance(1)
    return {name: mean(np.stack(own)) for name, own in values.items()}
