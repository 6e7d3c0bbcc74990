"""`compare`: which way of deploying an adapter keeps more of the fine-tune, and the smallest that keeps enough.

For every type two deployments are measured on a text: the adapter merged into the weights, then quantized; and the
adapter at run time on the quantized base. Beside them, once, the base without the adapter. The yardstick is the merged
model at full precision: the fine-tune as trained.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from loragraft.arrays import Doubles
from loragraft.errors import LoragraftError
from loragraft.evaluate.deployment import Deployment
from loragraft.evaluate.picture import picture
from loragraft.evaluate.reading import Opening, Reader, Reading, check_vocabulary, read_by
from loragraft.evaluate.uncertainty import SIGNIFICANT
from loragraft.evaluate.verdict import (
    NOTHING,
    Candidate,
    of_activations,
    recommendation,
    smallest,
    verdict,
)
from loragraft.inference.measurement import Measurement, Text, measurement
from loragraft.inference.perplexity import Perplexity
from loragraft.inference.tokenizer import Tokenizer
from loragraft.opening import AdapterArguments, open_model
from loragraft.progress import SILENT, Progress
from loragraft.quants.filetypes import file_type
from loragraft.streaming.options import QuantizeOptions
from loragraft.system.mapped import intact
from loragraft.system.workers import Workers
from loragraft.verbs.merge import merge

FULL, MERGED, RUNTIME, BASE = "full", "merged", "runtime", "base"
AS_RUN = {MERGED: "merged, as run", RUNTIME: "runtime, as run"}
KEEP = 0.99
"""Of the fine-tune. A KL divergence is quadratic in what moves a model, so losing 1 % is as if the adapter had been
applied at a strength of 0.9: docs/decisions/0003-compare.md."""


@dataclass(frozen=True, slots=True)
class TypeComparison:
    """The two deployments of one type, and which of them keeps more, in a sentence."""

    type: str
    merged: Deployment
    runtime: Deployment
    verdict: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """All deployments. `smallest`: the label of the smallest that surely keeps the share `keep` of the fine-tune, if
    one does; `verdict`: what to take, in a sentence or two."""

    context: int
    keep: float
    full: Deployment
    base: Deployment
    types: list[TypeComparison]
    smallest: str | None
    verdict: str

    def __str__(self) -> str:
        return self.verdict

    def as_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return asdict(self)


@intact
def compare(
    base: str | PathLike[str],
    adapters: AdapterArguments,
    text: str | Measurement,
    *,
    types: Sequence[str] = ("Q4_K_M",),
    keep: float = KEEP,
    imatrix: str | PathLike[str] | None = None,
    work_dir: str | PathLike[str] | None = None,
    workers: Workers | None = None,
    progress: Progress = SILENT,
) -> Comparison:
    """Measure the deployments of `adapters` (paths, or pairs of path and strength) on `base`, on `text`.

    `types`: how to quantize; `imatrix`: an importance matrix for that; `keep`: how much of the fine-tune is wanted, a
    share between 0 and 1; `workers`: who makes the models, as for `merge`, and reads the windows.

    Perplexity is computed as llama-perplexity does, in windows of 512 tokens if `text` says nothing else. The files
    that have to be made go to a temporary folder in `work_dir`: one F16 model, and the two quantized ones of one type
    at a time. They are removed, whatever happens. Raises LoragraftError.
    """
    if not adapters:
        raise LoragraftError("adapters", "nothing to compare", expected="at least one adapter")
    if not 0 < keep < 1:
        raise LoragraftError("keep", "not a share of the fine-tune", found=keep, expected="between 0 and 1")
    kinds = list(dict.fromkeys(file_type(name).name for name in types))
    if not kinds:
        raise LoragraftError("types", "nothing to compare", expected="at least one type")
    # the base may be quantized already
    options = QuantizeOptions(allow_requantize=True, imatrix=imatrix)
    how, unmerged = measurement(text), open_model(base, dequantize=True)
    how.read_by(
        Tokenizer(unmerged.metadata, unmerged.path), unmerged.context_length, progress
    )  # raises early
    with tempfile.TemporaryDirectory(prefix="loragraft-", dir=work_dir) as folder:
        bench = _Bench(base, adapters, options, Path(folder), how, progress, workers)
        full = bench.made(FULL, adapters, "F16")
        words = how.read_by(full.tokenizer, None)
        alone = bench.reader(BASE)
        check_vocabulary(alone, full)
        progress.start("Comparing the base", 2 * len(words))
        perplexity, readings = bench.read(full, {BASE: alone}, words)
        whole = readings[BASE]
        measured = [_of_type(bench, kind, full, words, whole.kl) for kind in kinds]
        return _comparison(
            measured,
            Deployment("merged, F16", full.size, perplexity),
            Deployment.of("base alone", alone.size, whole),
            keep,
            words.context,
        )


@dataclass(frozen=True)
class _Bench:
    """Makes the models to measure."""

    base: str | PathLike[str]
    adapters: AdapterArguments
    options: QuantizeOptions
    folder: Path
    how: Measurement
    progress: Progress
    workers: Workers | None = None

    def made(self, name: str, merged: AdapterArguments, kind: str) -> Reader:
        """The base with `merged` in its weights, as `kind`, in the file of this name."""
        path = self.folder / f"{name}.gguf"
        merge(
            self.base,
            merged,
            path,
            type=kind,
            options=self.options,
            dequantize=True,
            threads=self.how.threads,
            workers=self.workers,
            progress=self.progress,
        )
        return self.reader(name)

    @property
    def running(self) -> dict[str, Any]:
        """How models are run: with float activations, if nothing is said."""
        return {"activations": "f32"} | self.how.running

    @property
    def tells_apart(self) -> bool:
        """Whether deployments are also measured as the engine runs them."""
        rounds = self.how.backend != "reference" and self.how.device in (None, "cpu")
        return rounds and self.how.activations is None

    def reader(self, name: str) -> Reader:
        """What is called `name` here: a model, made before."""
        if name == BASE:
            opening = Opening(os.fspath(self.base), (), self.running)
        else:
            file = MERGED if name == AS_RUN[MERGED] else RUNTIME if name == AS_RUN[RUNTIME] else name
            running = self.running if file == name else self.how.running
            attached = self.adapters if file == RUNTIME else ()
            opening = Opening(str(self.folder / f"{file}.gguf"), attached, running)
        reader = Reader(opening)
        if self.workers is None:
            _ = reader.model  # so that what cannot be run is told of before much else is done
        return reader

    def read(
        self, full: Reader, others: Mapping[str, Reader], text: Text
    ) -> tuple[Perplexity, dict[str, Reading]]:
        """How the fine-tune and `others` read `text`, here or by workers."""
        return read_by(full, others, text, self.how, self.workers, self.progress)

    def remove(self, *names: str) -> None:
        for name in names:
            (self.folder / f"{name}.gguf").unlink()


def _of_type(bench: _Bench, kind: str, full: Reader, text: Text, base: Doubles) -> TypeComparison:
    """Make, read and remove the two deployments of a type. (Their space on disk is free when the models, which are
    mapped, are gone: at the return.)"""
    models = {
        MERGED: bench.made(MERGED, bench.adapters, kind),
        RUNTIME: bench.made(RUNTIME, (), kind),
    }
    if bench.tells_apart:
        models |= {name: bench.reader(name) for name in AS_RUN.values()}
    bench.progress.start(f"Comparing {kind}", (1 + len(models)) * len(text))
    _, readings = bench.read(full, models, text)
    sizes = {name: models[name].size for name in (MERGED, RUNTIME)}
    bench.remove(MERGED, RUNTIME)
    labels = {MERGED: f"merged, {kind}", RUNTIME: f"{kind} + adapter"}
    merged, runtime = (
        Deployment.of(labels[name], sizes[name], readings[name], base, readings.get(AS_RUN[name]))
        for name in (MERGED, RUNTIME)
    )
    return TypeComparison(kind, merged, runtime, verdict(readings[MERGED].kl, readings[RUNTIME].kl, base))


def _comparison(
    types: list[TypeComparison], full: Deployment, base: Deployment, keep: float, context: int
) -> Comparison:
    candidates = [
        Candidate(row.label, row.size, row.kept)
        for one in types
        for row in (one.merged, one.runtime)
        if row.kept is not None
    ]
    chosen = smallest(candidates, keep)
    if not candidates:
        sentences = [NOTHING]
    elif len(types) == 1 and chosen is not None:
        sentences = [types[0].verdict]
    elif len(types) == 1:
        sentences = [types[0].verdict, recommendation(candidates, keep)]
    else:
        sentences = [recommendation(candidates, keep)]
    label = None if chosen is None else chosen.label
    rows = [row for one in types for row in (one.merged, one.runtime)]
    advised = label or max(candidates, key=lambda one: one.kept.value).label if candidates else None
    for row in rows:
        if row.label == advised and (told := of_activations(row)) is not None:
            sentences.append(told)
    return Comparison(context, keep, full, base, types, label, " ".join(sentences))


_NOTHING_LOST = 1e-6
"""Where `--type F16` stands on a logarithmic axis."""


def save_picture(result: Comparison, path: Path) -> None:
    """The share kept against the size, a curve for merged and one for run time, as PNG or SVG. Needs matplotlib.

    What is lost is drawn on a logarithmic axis: from 99 % to 99.9 % is as far as from 90 % to 99 %.
    """
    if any(row.kept is None for one in result.types for row in (one.merged, one.runtime)):
        raise LoragraftError(path, "nothing to draw", found="an adapter that changes nothing on this text")
    with picture(path, 7.0, 4.8) as axes:
        ways = (("merged", MERGED, "o"), ("adapter at run time", RUNTIME, "s"))
        for label, attribute, marker in ways:
            rows = sorted(((getattr(one, attribute), one.type) for one in result.types), key=_size)
            lost = [max(1 - row.kept.value, _NOTHING_LOST) for row, _ in rows]
            errors = [SIGNIFICANT * row.kept.error for row, _ in rows]
            sizes = [row.size / 1e6 for row, _ in rows]
            axes.errorbar(sizes, lost, errors, marker=marker, markersize=4, linewidth=1, label=label)
            if attribute == MERGED:
                for (_, kind), x, y in zip(rows, sizes, lost, strict=True):
                    axes.annotate(kind, (x, y), (-5, 4), textcoords="offset points", fontsize=7, ha="right")
        axes.axhline(1 - result.keep, color="grey", linewidth=0.7, linestyle="--")
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda lost, _: f"{100 * (1 - lost):.5g} %")
        axes.yaxis.set_minor_formatter(lambda lost, _: "")
        axes.invert_yaxis()
        axes.set_xlabel("size, MB")
        axes.set_ylabel("of the fine-tune kept")
        axes.legend(fontsize=8, loc="lower right")
        axes.grid(alpha=0.3)


def _size(row: tuple[Deployment, str]) -> int:
    return row[0].size
