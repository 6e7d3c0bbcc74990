"""Carries out a plan: GGUF files, one or several, written in one pass; and reports."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from loragraft.errors import UnsupportedError, naming
from loragraft.formats.gguf.model import SPLIT_COUNT, SPLIT_NO, SPLIT_TENSORS, model_files
from loragraft.formats.gguf.reader import GGUFTensor
from loragraft.formats.gguf.values import Metadata
from loragraft.formats.gguf.writer import GGUFLayout, TensorSpec
from loragraft.formats.source import ModelSource
from loragraft.formats.split import plan_shards, shard_metadata, shard_paths
from loragraft.progress import SILENT, Progress
from loragraft.streaming.nvfp4_scales import measure_scales
from loragraft.streaming.options import QuantizeOptions
from loragraft.streaming.plan import WritePlan
from loragraft.streaming.report import TensorReport, WriteReport
from loragraft.streaming.spreading import Spreading, spread_pass
from loragraft.streaming.steps import Step
from loragraft.streaming.writing import FilePlan, WholeTensors, write_files


def dry_run(plan: WritePlan) -> WriteReport:
    """What carrying out `plan` would write."""
    lacking = [(name, kind.name) for name, kind in plan.lacking_importance]
    return WriteReport(
        plan.target, [], _tensor_reports(plan), fallbacks=len(plan.fallbacks), lacking_importance=lacking
    )


def write_model(
    model: ModelSource,
    plan: WritePlan,
    output: Path,
    options: QuantizeOptions,
    *,
    inputs: Iterable[Path] = (),
    recipe: Iterable[object] = (),
    first: Callable[[WholeTensors], None] | None = None,
    spread: Spreading | None = None,
    threads: int,
    progress: Progress = SILENT,
    label: str = "Writing",
) -> WriteReport:
    """Write the model that `plan` describes to `output`, or to `output`-00001-of-0000N.gguf and so on.

    `inputs`: files that the run reads, beside those of `model`; `recipe` and `first`: see `write_files`;
    `spread`: over which workers. Raises
    `QuantizeError`, `OutputError`.
    """
    plan.require_importance(model.path)
    for step in plan.steps:
        for kind in () if step.copies else (step.source.type, step.type):
            if not kind.holds_weights:
                raise UnsupportedError(
                    model.path, f"tensor {step.name!r} is of a type that cannot be converted", found=kind
                )
    if plan.fallbacks:
        name, wanted, chosen = plan.fallbacks[0]
        progress.note(
            f"{len(plan.fallbacks)} of {len(plan.steps)} tensors have rows that the wanted type's blocks do not fit; "
            f"they get another, such as {name}: {chosen} for {wanted}"
        )
    began = time.monotonic()
    with naming(model.path):
        measure_scales(plan.steps, threads=threads, progress=progress)
    files = file_plans(model, plan, output, options)
    write_files(
        files,
        inputs=[*model_files(model), *inputs],
        recipe=recipe,
        first=first,
        run=None if spread is None else partial(spread_pass, how=spread),
        resume=options.resume,
        threads=threads,
        max_memory=options.max_memory,
        subject=model.path,
        progress=progress,
        label=label,
    )
    seconds = time.monotonic() - began
    paths = [file.path for file in files]
    errors = []
    if options.verify:
        from loragraft.streaming.verify import measure_errors

        errors = measure_errors(plan.steps, paths, threads=threads, progress=progress)
    return WriteReport(plan.target, paths, _tensor_reports(plan), seconds, len(plan.fallbacks), errors=errors)


def _tensor_reports(plan: WritePlan) -> list[TensorReport]:
    return [
        TensorReport(
            step.name,
            step.source.shape,
            step.source.type.name,
            step.type.name,
            step.source.n_rows * step.source.row_bytes,
            step.nbytes,
            step.weights,
        )
        for step in plan.steps
    ]


# ---- how the output is divided over files ----


def file_plans(model: ModelSource, plan: WritePlan, output: Path, options: QuantizeOptions) -> list[FilePlan]:
    """The files that `plan` makes, and what goes where."""
    if options.keep_split:
        groups = _groups_of_input(model, plan.steps)
    elif options.split is not None:
        by_name = {step.name: step for step in plan.steps}
        shards = plan_shards(_specs(plan.steps), options.split)
        groups = [[by_name[spec.name] for spec in shard] for shard in shards]
    else:
        return [_file(output, plan.metadata, plan.steps)]
    count = len(groups)
    files = []
    for number, (path, steps) in enumerate(zip(shard_paths(output, count), groups, strict=True)):
        metadata = shard_metadata(plan.metadata, number, count, len(plan.steps))
        if options.keep_split:  # llama-quantize appends the keys in another order than llama-gguf-split
            for key in (SPLIT_NO, SPLIT_COUNT, SPLIT_TENSORS):
                metadata[key] = metadata.pop(key)
        files.append(_file(path, metadata, steps))
    return files


def _groups_of_input(model: ModelSource, steps: Sequence[Step]) -> list[list[Step]]:
    """The steps by the input's files. (--keep-split)"""
    groups: dict[Path, list[Step]] = {}
    for tensor in model.tensors.values():
        if isinstance(tensor, GGUFTensor):
            groups[tensor.file] = []
    waiting: list[Step] = []  # a computed scale goes where the weight goes that follows it
    for step in steps:
        waiting.append(step)
        if isinstance(step.source, GGUFTensor):
            groups[step.source.file] += waiting
            waiting = []
    return list(groups.values())


def _file(path: Path, metadata: Metadata, steps: list[Step]) -> FilePlan:
    return FilePlan(path, GGUFLayout.plan(metadata, _specs(steps)), steps)


def _specs(steps: Sequence[Step]) -> list[TensorSpec]:
    return [TensorSpec(step.name, step.source.shape, step.type) for step in steps]
