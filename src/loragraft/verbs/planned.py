"""What `merge` and `quantize` do with what they have planned: round it on a text, if asked to, and write it, in this
process or over workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Protocol

from loragraft.adapters.receipt import AdapterReceipt
from loragraft.errors import LoragraftError, OutputError, naming
from loragraft.formats.source import ModelSource
from loragraft.progress import SILENT, Noted, Progress
from loragraft.streaming.model_writer import dry_run, file_plans, write_model
from loragraft.streaming.options import QuantizeOptions
from loragraft.streaming.plan import WritePlan
from loragraft.streaming.report import WriteReport
from loragraft.streaming.spreading import Spreading, spread_over
from loragraft.streaming.writing import FilePlan
from loragraft.system.files import named_path
from loragraft.system.threads import thread_count
from loragraft.system.workers import Workers
from loragraft.system.workers.crew import Crew


@dataclass(frozen=True)
class Planned:
    """A model, what will be written of it, and what else decides the bytes."""

    model: ModelSource
    plan: WritePlan
    label: str
    """What the progress bar says."""
    adapters: tuple[AdapterReceipt, ...] = ()
    recipe: tuple[object, ...] = ()
    """A run goes on only from one with the same."""
    inputs: tuple[Path, ...] = ()
    """Files that are read, beside those of the model."""


class Planner(Protocol):
    """What a verb was asked for. Picklable: each worker makes the plan of it again."""

    @property
    def source(self) -> str | PathLike[str] | ModelSource: ...

    @property
    def options(self) -> QuantizeOptions: ...

    def planned(self, progress: Progress) -> Planned:
        """Open everything and plan; what is to be said of it goes to `progress`."""


def write_planned(
    planner: Planner,
    output: str | PathLike[str] | None,
    *,
    threads: int | None = None,
    workers: Workers | Crew | None = None,
    progress: Progress = SILENT,
) -> WriteReport:
    """Write what `planner` plans to `output`; without an output, only report what would be written.

    `threads`: all CPUs, if None. `workers`: as for `merge`. Raises what planning, `crew_of`, `calibrated` and
    `write_model` raise, and LoragraftError for workers with a model that is open: they can't be sent one.
    """
    progress = Noted(progress)
    target = None if output is None else named_path(output, OutputError)
    if workers is not None and isinstance(planner.source, ModelSource):
        raise LoragraftError("workers", "open the model themselves", expected="its path")
    remake = partial(files_planned, planner, target or Path())
    # Workers start while this process plans.
    with spread_over(None if target is None else workers, threads, remake) as spread:
        planned = planner.planned(progress)
        if target is None:
            report = dry_run(planned.plan)
        else:
            report = _written(planner, planned, target, spread, thread_count(threads), progress)
    return replace(report, adapters=planned.adapters, notes=progress.notes)


def files_planned(planner: Planner, output: Path) -> Sequence[FilePlan]:
    """The files that `planner` plans: what a worker asks for."""
    planned = planner.planned(SILENT)
    return file_plans(planned.model, planned.plan, output, planner.options)


def plan_again(planner: Planner) -> WritePlan:
    """The plan alone: what a worker that rounds asks for."""
    return planner.planned(SILENT).plan


def _written(
    planner: Planner,
    planned: Planned,
    target: Path,
    spread: Spreading | None,
    threads: int,
    progress: Noted,
) -> WriteReport:
    model, plan, options = planned.model, planned.plan, planner.options
    first, text = None, b""
    if options.calibrate:
        from loragraft.inference.calibration import calibrated  # and with it a tokenizer: slow to import

        first, text = calibrated(
            model,
            plan,
            options,
            threads=threads,
            spread=spread,
            replan=partial(plan_again, planner),
            progress=progress,
        )
    report = write_model(
        model,
        plan,
        target,
        options,
        recipe=[*planned.recipe, text],
        first=first,
        spread=spread,
        inputs=[*planned.inputs, *options.files],
        threads=threads,
        progress=progress,
        label=planned.label,
    )
    if planned.adapters and not options.calibrate:
        from loragraft.streaming.change_kept import kept_note

        with naming(model.path):
            note = kept_note(plan.steps, "add --calibrate TEXT, or take a larger type")
        if note is not None:
            progress.note(note)
    return report
