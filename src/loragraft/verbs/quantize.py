"""Quantize a GGUF model: the bytes of llama-quantize, in a fraction of its time and memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from pathlib import Path

from loragraft.errors import LoragraftError, OutputError, UnsupportedError, naming
from loragraft.formats.gguf.model import open_gguf
from loragraft.formats.source import ModelSource
from loragraft.progress import SILENT, Noted, Progress
from loragraft.quants.filetypes import FileType, file_type
from loragraft.streaming.model_writer import dry_run, file_plans, write_model
from loragraft.streaming.options import QuantizeOptions
from loragraft.streaming.plan import WritePlan, plan_quantize
from loragraft.streaming.report import WriteReport
from loragraft.streaming.spreading import spread_over
from loragraft.streaming.writing import FilePlan
from loragraft.system.files import named_path
from loragraft.system.threads import thread_count
from loragraft.system.workers import Workers
from loragraft.system.workers.crew import Crew


def quantize(
    source: str | PathLike[str] | ModelSource,
    output: str | PathLike[str] | None,
    type: str | int | FileType,  # noqa: A002 (the word that everyone uses for it)
    *,
    options: QuantizeOptions | None = None,
    threads: int | None = None,
    workers: Workers | Crew | None = None,
    progress: Progress = SILENT,
) -> WriteReport:
    """Write the model at `source` to `output` as `type`: a name, alias or number that llama-quantize knows.

    Without `output` nothing is written: the report says what would be (a dry run). `threads`: all CPUs, if None;
    `workers`: as for `merge`. Raises `FormatError`, `QuantizeError`, `OutputError`, `UnsupportedError`.
    """
    options = options or QuantizeOptions()
    progress = Noted(progress)
    work = _Quantizing(source, file_type(type), options)
    target = None if output is None else named_path(output, OutputError)
    if workers is not None and isinstance(source, ModelSource):
        raise LoragraftError("workers", "open the model themselves", expected="its path")
    remake = partial(work.files, target or Path())
    # Workers start while this process plans.
    with spread_over(None if target is None else workers, threads, remake) as spread:
        model, plan = work.planned()
        for note in [*model.notes, *plan.notes]:
            progress.note(note)
        if target is None:
            return replace(dry_run(plan), notes=progress.notes)
        first, text = None, b""
        if options.calibrate:
            from loragraft.inference.calibration import calibrated  # and with it a tokenizer: slow to import

            first, text = calibrated(
                model,
                plan,
                options,
                threads=thread_count(threads),
                spread=spread,
                replan=work.plan,
                progress=progress,
            )
        report = write_model(
            model,
            plan,
            target,
            options,
            recipe=[text],
            first=first,
            spread=spread,
            inputs=options.files,
            threads=thread_count(threads),
            progress=progress,
            label=f"Quantizing to {plan.target}",
        )
    return replace(report, notes=progress.notes)


@dataclass(frozen=True)
class _Quantizing:
    """What is to be quantized, as it was asked for: what a worker needs to plan the same."""

    source: str | PathLike[str] | ModelSource
    kind: FileType
    options: QuantizeOptions

    def planned(self) -> tuple[ModelSource, WritePlan]:
        model = self.source
        if not isinstance(model, ModelSource):
            model = _open(named_path(model))
        with naming(model.path):
            return model, plan_quantize(model, self.kind, self.options)

    def plan(self) -> WritePlan:
        return self.planned()[1]

    def files(self, output: Path) -> list[FilePlan]:
        model, plan = self.planned()
        return file_plans(model, plan, output, self.options)


def _open(path: Path) -> ModelSource:
    if path.is_file():
        model = open_gguf(path)
        kind = model.metadata.get("general.type")
        if kind is None or kind.data != "adapter":
            return model
    from loragraft.huggingface.contents import Kind, Role, recognise  # all that reads folders: slow to import

    found = recognise(path, Role.MODEL)
    if found.kind is Kind.CHECKPOINT:
        raise UnsupportedError(
            path,
            "is no GGUF file",
            hint=f"`loragraft merge` takes folders: loragraft merge {path} -o model.gguf",
        )
    model = open_gguf(found.path)
    model.notes[:0] = found.notes
    return model
