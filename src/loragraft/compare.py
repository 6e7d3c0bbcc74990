"""`compare`: which way of deploying an adapter keeps more of the fine-tune, measured on a text.

Four deployments read the same windows of the text side by side, so that nothing but one window's logits is kept:
the adapter merged into the weights, then quantized; the adapter at run time on the quantized base; both at full
precision, which is the fine-tune as trained; and the base without the adapter.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from loragraft.errors import LoragraftError
from loragraft.evaluate.divergence import Divergence, DivergenceMeter
from loragraft.evaluate.perplexity import (
    DEFAULT_CONTEXT,
    Meter,
    Perplexity,
    count,
    log_softmax,
    losses,
    windows,
)
from loragraft.evaluate.verdict import verdict
from loragraft.load import BackendName, Model, load
from loragraft.merge import merge
from loragraft.models import AdapterArgument
from loragraft.options import QuantizeOptions
from loragraft.progress import SILENT, Progress

MERGED, RUNTIME, FULL, BASE = "merged", "runtime", "full", "base"


@dataclass(frozen=True, slots=True)
class Deployment:
    """One way to deploy. `size`: bytes of weights (and of the adapter, where it is separate)."""

    label: str
    size: int
    perplexity: Perplexity
    divergence: Divergence | None
    """From the full-precision merged model; None for that model itself."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """`deployments` by name: merged, runtime, full, base. `verdict`: which keeps more, in a sentence."""

    type: str
    context: int
    deployments: dict[str, Deployment]
    verdict: str

    def as_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return asdict(self)


def compare(
    base: str | PathLike[str],
    adapters: Sequence[AdapterArgument],
    text: str,
    *,
    type: str = "Q4_K_M",  # noqa: A002 - the verbs' name for it
    imatrix: str | PathLike[str] | None = None,
    context: int = DEFAULT_CONTEXT,
    limit: int | None = None,
    backend: BackendName = "native",
    threads: int | None = None,
    work_dir: str | PathLike[str] | None = None,
    progress: Progress = SILENT,
) -> Comparison:
    """Measure the deployments of `adapters` (paths, or pairs of path and strength) on `base`, on `text`.

    `type`: how to quantize; `imatrix`: an importance matrix for that.

    Perplexity is computed as llama-perplexity does (`loragraft.evaluate.perplexity`), in windows of `context` tokens,
    the first `limit` of them. The files that have to be made (two quantized, one F16) go to a temporary folder in
    `work_dir` and are removed, whatever happens. Raises LoragraftError.
    """
    if not adapters:
        raise LoragraftError("adapters", "nothing to compare", expected="at least one adapter")
    with tempfile.TemporaryDirectory(prefix="loragraft-", dir=work_dir) as folder:
        merged, quantized, full = (Path(folder) / f"{name}.gguf" for name in ("merged", "base", "full"))
        options = QuantizeOptions(
            allow_requantize=True, imatrix=None if imatrix is None else Path(imatrix)
        )  # the base may be quantized already
        for target, pairs, kind in ((merged, adapters, type), (quantized, [], type), (full, adapters, "F16")):
            merge(base, pairs, target, type=kind, options=options, threads=threads, progress=progress)
        models = {
            MERGED: (f"merged, {type}", load(merged, backend=backend, threads=threads)),
            RUNTIME: (
                f"{type} + adapter",
                load(quantized, adapters, backend=backend, threads=threads),
            ),
            FULL: ("merged, F16", load(full, backend=backend, threads=threads)),
            BASE: ("base alone", load(base, backend=backend, threads=threads)),
        }
        return _measured(models, text, type, context, limit, progress)


def _measured(
    models: dict[str, tuple[str, Model]],
    text: str,
    quantization: str,
    context: int,
    limit: int | None,
    progress: Progress,
) -> Comparison:
    full = models[FULL][1]
    ids = full.tokenize(text)
    perplexities = {name: Meter() for name in models}
    divergences = {name: DivergenceMeter() for name in models if name != FULL}
    progress.start("Comparing", count(ids, context, limit) * len(models))
    for window in windows(ids, context, full.window_bos, limit=limit):
        reference = log_softmax(full.logits(window.ids)[window.scored])
        for name, (_, model) in models.items():
            predicted = reference if model is full else log_softmax(model.logits(window.ids)[window.scored])
            perplexities[name].add(losses(predicted, window.targets))
            if name in divergences:
                divergences[name].add(reference, predicted)
            progress.advance(1)
    deployments = {
        name: Deployment(
            label,
            model.size,
            perplexities[name].result(),
            divergences[name].result() if name in divergences else None,
        )
        for name, (label, model) in models.items()
    }
    sentence = verdict(
        divergences[MERGED].values(), divergences[RUNTIME].values(), divergences[BASE].values()
    )
    return Comparison(quantization, context, deployments, sentence)
