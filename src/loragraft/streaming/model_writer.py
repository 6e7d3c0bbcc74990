"""Carries out a plan: opens the output files, runs the pass, reports."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from loragraft import __version__, _native
from loragraft.errors import OutputError, UnsupportedError, naming
from loragraft.formats.gguf.model import SPLIT_COUNT, SPLIT_NO, SPLIT_TENSORS
from loragraft.formats.gguf.reader import GGUFTensor
from loragraft.formats.gguf.values import Metadata, Value
from loragraft.formats.gguf.writer import GGUFWriter, TensorSpec
from loragraft.formats.source import ModelSource
from loragraft.formats.split import plan_shards, shard_metadata, shard_paths
from loragraft.progress import SILENT, Progress
from loragraft.quants.filetypes import FileType
from loragraft.streaming.journal import Journal
from loragraft.streaming.nvfp4_scales import measure_scales
from loragraft.streaming.options import QuantizeOptions
from loragraft.streaming.pipeline import OutputPart, Step, run_pass
from loragraft.streaming.plan import WritePlan
from loragraft.units import bytes_text, plural

if TYPE_CHECKING:
    from loragraft.streaming.verify import TensorError


@dataclass(frozen=True, slots=True)
class TensorReport:
    """One tensor of the output. `shape` in NumPy order; sizes in bytes."""

    name: str
    shape: tuple[int, ...]
    source_type: str
    type: str
    source_size: int
    size: int
    weights: int


@dataclass(frozen=True, slots=True)
class AdapterUse:
    """An adapter that was merged: its own tensors, all of which were used, and how many weights they changed."""

    path: Path
    scale: float
    """The user's factor."""
    tensors: int
    targets: int


@dataclass(frozen=True, repr=False)
class WriteReport:
    """What a run of `quantize` or `merge` wrote (or, for a dry run, would write)."""

    target: FileType
    paths: list[Path]
    tensors: list[TensorReport]
    seconds: float = 0.0
    fallbacks: int = 0
    lacking_importance: list[tuple[str, str]] = field(default_factory=list)
    """Of a dry run: tensors that will need an importance matrix, and their types."""
    adapters: tuple[AdapterUse, ...] = ()
    errors: list[TensorError] = field(default_factory=list)
    """With `verify`: how far each tensor of the file is from what was to be stored."""
    notes: list[str] = field(default_factory=list)
    """What the user should know: what was left out, taken instead, or looks wrong."""

    def __str__(self) -> str:
        place = str(self.paths[0]) if len(self.paths) == 1 else f"{len(self.paths)} files"
        return (
            f"{place if self.paths else 'dry run'}: {self.target}, {plural(len(self.tensors), 'tensor')}, "
            f"{bytes_text(self.size)}, {self.bits_per_weight:.2f} bits per weight"
        )

    def __repr__(self) -> str:
        return f"<WriteReport {self}>"

    @property
    def source_size(self) -> int:
        return sum(tensor.source_size for tensor in self.tensors)

    @property
    def size(self) -> int:
        """Of all tensors, in bytes."""
        return sum(tensor.size for tensor in self.tensors)

    @property
    def weights(self) -> int:
        return sum(tensor.weights for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.size / self.weights if self.weights else 0.0


@dataclass(frozen=True)
class _File:
    path: Path
    metadata: Metadata
    steps: list[Step]

    @property
    def specs(self) -> list[TensorSpec]:
        return [TensorSpec(step.name, step.source.shape, step.type) for step in self.steps]


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
    threads: int,
    progress: Progress = SILENT,
    label: str = "Writing",
) -> WriteReport:
    """Write the model that `plan` describes to `output`, or to `output`-00001-of-0000N.gguf and so on.

    `inputs`: files that the run reads, beside those of `model`. Raises `QuantizeError`, `OutputError`.
    """
    plan.require_importance(model.path)
    for step in plan.steps:
        for kind in () if step.copies else (step.source.type, step.type):
            if not _native.supports(kind.id):
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
        measure_scales(plan.steps, threads, progress)
    read = [*_files_of(model), *inputs]
    files = _files(model, plan, output, options)
    digest = _digest(files, read)
    with ExitStack() as stack:
        parts = []
        for file in files:
            writer = GGUFWriter(file.path, file.metadata, file.specs, inputs=read, resume=options.resume)
            stack.enter_context(writer)
            journal = Journal(writer.output.journal, digest, resume=writer.output.resumed)
            stack.callback(journal.close)
            parts.append(OutputPart(writer, file.steps, journal))
        if options.resume:
            progress.note(_resume_note(parts))
        run_pass(
            parts,
            threads=threads,
            max_memory=options.max_memory,
            subject=model.path,
            progress=progress,
            label=label,
        )
        for part in parts if len(parts) > 1 else ():
            part.writer.seal()  # so that all files appear at once
    for part in parts:
        _check_size(part)
    seconds = time.monotonic() - began
    errors = _verified(plan, files, progress) if options.verify else []
    paths = [file.path for file in files]
    return WriteReport(plan.target, paths, _tensor_reports(plan), seconds, len(plan.fallbacks), errors=errors)


def _verified(plan: WritePlan, files: Sequence[_File], progress: Progress) -> list[TensorError]:
    from loragraft.streaming.verify import (
        measure_errors,  # and with it every type's reference: slow to import
    )

    return measure_errors(plan.steps, [file.path for file in files], progress)


def _resume_note(parts: Sequence[OutputPart]) -> str:
    total = sum(step.source.n_rows for part in parts for step in part.steps)
    done = sum(
        stop - start
        for part in parts
        if part.journal is not None
        for spans in part.journal.done.values()
        for start, stop in spans
    )
    if not done:
        return "nothing to continue: starting from the beginning"
    return f"continuing: {100 * done / total:.0f} % of the rows are written already"


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


def _check_size(part: OutputPart) -> None:
    size = part.writer.path.stat().st_size
    if size != part.writer.layout.size:
        raise OutputError(
            part.writer.path,
            "has another size than was written",
            found=f"{size} bytes",
            expected=part.writer.layout.size,
        )


# ---- how the output is divided over files ----


def _files(model: ModelSource, plan: WritePlan, output: Path, options: QuantizeOptions) -> list[_File]:
    if options.keep_split:
        groups = _groups_of_input(model, plan.steps)
    elif options.split is not None:
        by_name = {step.name: step for step in plan.steps}
        specs = _File(output, plan.metadata, plan.steps).specs
        groups = [[by_name[spec.name] for spec in shard] for shard in plan_shards(specs, options.split)]
    else:
        return [_File(output, plan.metadata, plan.steps)]
    count = len(groups)
    files = []
    for number, (path, steps) in enumerate(zip(shard_paths(output, count), groups, strict=True)):
        metadata = shard_metadata(plan.metadata, number, count, len(plan.steps))
        if options.keep_split:  # llama-quantize appends the keys in another order than llama-gguf-split
            for key in (SPLIT_NO, SPLIT_COUNT, SPLIT_TENSORS):
                metadata[key] = metadata.pop(key)
        files.append(_File(path, metadata, steps))
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


def _files_of(model: ModelSource) -> list[Path]:
    """The files that the model is read from, as far as its tensors tell; of a folder, all."""
    if model.path.is_dir():
        return sorted(path for path in model.path.iterdir() if path.is_file())
    files = {tensor.file for tensor in model.tensors.values() if isinstance(tensor, GGUFTensor)}
    return sorted({model.path, *files})


def _digest(files: Sequence[_File], inputs: Iterable[Path]) -> str:
    """Of everything that decides the output's bytes; the inputs by their size and time of change."""
    digest = hashlib.sha256(__version__.encode())

    def add(*parts: object) -> None:
        digest.update(repr(parts).encode("utf-8", "surrogateescape"))

    for path in inputs:
        facts = path.stat() if path.exists() else None
        add(str(path.resolve()), facts and (facts.st_size, facts.st_mtime_ns, facts.st_ino))
    for file in files:
        add(file.path.name, [(key, _plain(value)) for key, value in file.metadata.items()])
        for step in file.steps:
            add(step.name, step.source.name, step.source.shape, step.type.name, step.through_f16)
            for array in (step.importance, step.multiplier, step.scales):
                digest.update(b"none" if array is None else array.tobytes())
            for delta in step.deltas:
                add(delta.scale, delta.strength)
                for array in (delta.a, delta.b, delta.magnitude):
                    digest.update(b"none" if array is None else array.tobytes())
    return digest.hexdigest()


def _plain(value: Value) -> tuple[object, ...]:
    data = value.data.tobytes() if hasattr(value.data, "tobytes") else value.data
    return value.type, value.item, data
