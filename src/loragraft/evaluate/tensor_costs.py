"""What each tensor would cost as each of several types: measured as one rough type, scaled for the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from loragraft.backends.cpu.program import NativeBackend
from loragraft.errors import QuantizeError
from loragraft.evaluate.reading import Reader
from loragraft.evaluate.sensitivity import sensitivities
from loragraft.evaluate.uncertainty import Estimate
from loragraft.formats.gguf.model import open_gguf
from loragraft.formats.source import ModelSource
from loragraft.inference.calibration import calibration_windows
from loragraft.inference.measurement import Measurement, Text
from loragraft.progress import SILENT, Progress
from loragraft.quants.allocation import Choice
from loragraft.quants.filetypes import file_type
from loragraft.quants.mixes import fitting, needs_importance
from loragraft.quants.types import QuantType
from loragraft.streaming.calibrated_costs import calibrated_costs
from loragraft.streaming.calibration import Calibration
from loragraft.streaming.model_writer import write_model
from loragraft.streaming.options import QuantizeOptions
from loragraft.streaming.plan import plan_quantize
from loragraft.streaming.rounding import rounding_errors
from loragraft.streaming.steps import Step
from loragraft.system.threads import thread_count
from loragraft.system.workers import Workers

#: As which a tensor is measured (or as what stands in for it): rough enough for its cost to stand out.
PROBE = file_type("Q3_K_S")


@dataclass(frozen=True, slots=True)
class TensorCost:
    """`probe`: the KL divergence, in nats, that the tensor was measured to cause as `probe_type`; `choices`: what it
    can become, each with the divergence that is to be expected."""

    probe_type: QuantType
    probe: Estimate
    choices: list[Choice]


def possible_types(steps: Sequence[Step], kinds: Sequence[QuantType]) -> dict[str, list[QuantType]]:
    """What each tensor can become: those of `kinds` that fit its rows (or what stands in for them) and can be made with
    the importance that there is. Raises `QuantizeError` if there is none."""
    plain = file_type("Q4_K_M")
    types = {}
    for step in steps:
        fits = dict.fromkeys(fitting(kind, step.source.columns) for kind in kinds)
        types[step.name] = [
            kind
            for kind in fits
            if kind.is_quantized
            and (step.importance is not None or not needs_importance(step.name, kind, plain))
        ]
        if not types[step.name]:
            raise QuantizeError(
                step.name,
                "none of the types fits this tensor",
                found=", ".join(kind.name for kind in kinds),
                hint="allow one that needs no importance matrix, such as Q4_K",
            )
    return types


def size_as(step: Step, kind: QuantType) -> int:
    """Bytes."""
    return step.source.n_rows * kind.row_bytes(step.source.columns)


def tensor_costs(
    full: Reader,
    steps: Sequence[Step],
    types: Mapping[str, Sequence[QuantType]],
    text: Text,
    *,
    options: QuantizeOptions,
    folder: Path,
    how: Measurement,
    workers: Workers | None = None,
    progress: Progress = SILENT,
) -> dict[str, TensorCost]:
    """By name, for the tensors of `steps` (of a plan to quantize `full`) as each of their `types`.

    A tensor's cost is taken to be proportional to its squared rounding error. A file that has to be made is made in
    `folder` and removed. `workers`, if any, read the windows.
    """
    threads = thread_count(how.threads)
    with _rough(full.source, options, folder, threads, progress) as path:
        rough = open_gguf(path).tensors
        probes = sensitivities(
            full.model if workers is None else None,
            {step.name: rough[step.name] for step in steps},
            text,
            how,
            files=(full.opening, str(path)),
            workers=workers,
            progress=progress,
        )
    measured = {step.name: {*types[step.name], rough[step.name].type} for step in steps}
    errors = rounding_errors(steps, measured, threads=threads, progress=progress)
    costs = {}
    for step in steps:
        name, probe = step.name, probes[step.name]
        unit = errors[name, rough[name].type]
        scale = probe.value / unit if unit > 0 else 0.0
        choices = [Choice(kind, size_as(step, kind), scale * errors[name, kind]) for kind in types[step.name]]
        costs[name] = TensorCost(rough[name].type, probe, choices)
    return costs


def calibrated_tensor_costs(
    full: ModelSource,
    steps: Sequence[Step],
    types: Mapping[str, Sequence[QuantType]],
    *,
    options: QuantizeOptions,
    threads: int,
    progress: Progress = SILENT,
) -> dict[str, TensorCost]:
    """The same for tensors that are rounded with error feedback, from gradients on the text that `options` calibrate
    on (`streaming.calibrated_costs`). What is told of a tensor's sensitivity is its cost as the first of its types."""
    windows, _ = calibration_windows(full, options.calibrate, options.calibrate_windows)
    plan = plan_quantize(full, file_type("Q4_K_M"), options)
    costs = calibrated_costs(
        plan, types, Calibration(windows), NativeBackend(), threads=threads, progress=progress
    )
    return {
        step.name: TensorCost(
            types[step.name][0],
            Estimate(costs.get((step.name, types[step.name][0]), 0.0), 0.0),
            [
                Choice(kind, size_as(step, kind), costs.get((step.name, kind), 0.0))
                for kind in types[step.name]
            ],
        )
        for step in steps
    }


@contextmanager
def _rough(
    full: ModelSource, options: QuantizeOptions, folder: Path, threads: int, progress: Progress
) -> Iterator[Path]:
    """A file of the tensors of `full` as `PROBE`, which is removed afterwards."""
    path, pure = folder / "rough.gguf", replace(options, pure=True)
    plan = plan_quantize(full, PROBE, pure)
    label = f"Quantizing to {PROBE}"
    write_model(full, plan, path, pure, threads=threads, progress=progress, label=label)
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
