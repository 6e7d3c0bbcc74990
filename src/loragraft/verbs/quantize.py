"""Quantize a GGUF model: the bytes of llama-quantize, in a fraction of its time and memory."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from loragraft.errors import UnsupportedError, naming
from loragraft.formats.gguf.model import open_gguf
from loragraft.formats.source import ModelSource
from loragraft.progress import SILENT, Progress
from loragraft.quants.filetypes import FileType, file_type
from loragraft.streaming.options import QuantizeOptions
from loragraft.streaming.plan import plan_quantize
from loragraft.streaming.report import WriteReport
from loragraft.system.files import named_path
from loragraft.system.workers import Workers
from loragraft.system.workers.crew import Crew
from loragraft.verbs.planned import Planned, write_planned


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
    work = _Quantizing(source, file_type(type), options or QuantizeOptions())
    return write_planned(work, output, threads=threads, workers=workers, progress=progress)


@dataclass(frozen=True)
class _Quantizing:
    """What is to be quantized, as it was asked for: what a worker needs to plan the same."""

    source: str | PathLike[str] | ModelSource
    kind: FileType
    options: QuantizeOptions

    def planned(self, progress: Progress) -> Planned:
        model = self.source
        if not isinstance(model, ModelSource):
            model = _open(named_path(model))
        with naming(model.path):
            plan = plan_quantize(model, self.kind, self.options)
        for note in [*model.notes, *plan.notes]:
            progress.note(note)
        return Planned(model, plan, f"Quantizing to {plan.target}")


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
            "is not a GGUF file",
            hint=f"`loragraft merge` takes folders: loragraft merge {path} -o model.gguf",
        )
    model = open_gguf(found.path)
    model.notes[:0] = found.notes
    return model
