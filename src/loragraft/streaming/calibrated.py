"""Rounding with error feedback, product by product, on a text.

The hidden states of all windows go through the model together. Before each product they wait: its inputs' second
moments are summed, its weights are rounded with feedback under them and written, and the windows go on through the
rounded ones. So each later product sees what the earlier ones have become. Only one layer's weights and one product's
moments are in memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from loragraft.arrays import Bytes, Floats, Ids
from loragraft.backends.gradients import missing
from loragraft.backends.program import Backend
from loragraft.errors import QuantizeError, naming
from loragraft.graph.ops import Graph
from loragraft.progress import SILENT, Progress
from loragraft.quants import feedback, native, rounding
from loragraft.quants.types import QuantType
from loragraft.streaming.held_out import HeldOut, HeldOutLoss, output_error
from loragraft.streaming.layers import Layers, multiplied
from loragraft.streaming.moments import InputMoments, input_moments
from loragraft.streaming.output_gradients import Gradients, groups
from loragraft.streaming.plan import WritePlan
from loragraft.streaming.steps import Step
from loragraft.streaming.walk import Walk
from loragraft.streaming.writing import WholeTensors
from loragraft.system.memory import give_back
from loragraft.system.threads import in_threads
from loragraft.units import plural

#: Tokens for each column that moments need to be trusted as they are; with fewer, damping grows.
ENOUGH = 4
#: An expert that fewer tokens than this for each of its columns reached is rounded to nearest.
FEWEST = 0.25
#: The part of plain second moments in those of values, which attention mixes.
APART = 0.3


@dataclass(frozen=True)
class Calibration:
    """The text to round on: `windows` int32 [n, tokens], each read on its own. `gradients`: whether a token counts by
    the gradient at a layer's outputs, and outputs by theirs (`streaming.output_gradients`); `plain`: the part of the
    second moments in which all tokens count alike. `folder`: where files without a name may be."""

    windows: Ids
    damping: float = feedback.DAMPING
    gradients: bool = True
    plain: float = 0.1
    output_damping: float = feedback.OUTPUT_DAMPING
    every: int = 2
    """Gradients are those of every so manyth window."""
    held_out: Mapping[str, Ids] = field(default_factory=dict)
    """Windows of other text, or of other parts of this one, to judge by; of the same length."""
    folder: Path | None = None


@dataclass(frozen=True, slots=True)
class MatrixCost:
    """What rounding a matrix costs its outputs, in squares: to nearest, and as it was done. On windows held out, or, if
    there are none, on the text."""

    name: str
    nearest: float
    cost: float


@dataclass
class CalibrationReport:
    """`costs`: of every matrix that was rounded with feedback; `nearest`: names of those that were not, and why."""

    costs: list[MatrixCost] = field(default_factory=list)
    nearest: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    held_out: list[HeldOutLoss] = field(default_factory=list)

    def notes(self) -> list[str]:
        """What the user should know."""
        reasons: dict[str, list[str]] = {}
        for name, reason in self.nearest.items():
            reasons.setdefault(reason, []).append(name)
        worse = [
            f"on {loss.label} this is worse than rounding to nearest: calibrate on more text, or on text like it too"
            for loss in self.held_out
            if loss.kl > loss.nearest
        ]
        return [*self.remarks, *map(str, self.held_out), *worse] + [
            f"{plural(len(names), 'tensor')} {'is' if len(names) == 1 else 'are'} rounded to nearest: {reason} "
            f"({', '.join(names[:3])}"
            f"{', ...' if len(names) > 3 else ''})"
            for reason, names in reasons.items()
        ]


def round_layers(
    plan: WritePlan,
    calibration: Calibration,
    backend: Backend,
    tensors: WholeTensors,
    *,
    threads: int,
    progress: Progress = SILENT,
) -> CalibrationReport:
    """Round the linear layers of `plan` on the text; they are written to `tensors`.

    Raises QuantizeError, and LoragraftError for activations that are not finite.
    """
    return _Rounding(plan, calibration, backend, tensors, threads, progress).run()


def together(mixed: Floats, plain: Floats) -> Floats:
    """Second moments of what attention mixes, and, in the part `APART`, of what it mixes."""
    share = np.float32((1 - APART) * np.trace(plain) / np.trace(mixed))
    return np.asarray(share * mixed + np.float32(APART) * plain)


Job = tuple[str, int]
"""A weight, and which of its matrices."""


@dataclass(frozen=True, slots=True)
class _RoundedMatrix:
    """Its rows, and rounded to nearest; why that is what they are, or what both cost."""

    data: Bytes
    nearest: Bytes
    reason: str | None = None
    cost: tuple[float, float] | None = None


class _Rounding:
    """The pass of `round_layers`."""

    def __init__(
        self,
        plan: WritePlan,
        calibration: Calibration,
        backend: Backend,
        tensors: WholeTensors,
        threads: int,
        progress: Progress,
    ) -> None:
        self.layers = Layers(plan, backend, threads)
        self.steps = self.layers.steps
        self.calibration, self.tensors = calibration, tensors
        self.threads, self.progress = threads, progress
        self.report = CalibrationReport()
        self.gradients: Gradients | None = None
        held = {label: windows for label, windows in calibration.held_out.items() if len(windows)}
        self.held_out = HeldOut(self.layers, held) if held else None

    def run(self) -> CalibrationReport:
        if not self.calibration.gradients:
            return self._run_layers()
        graph = self.layers.graph
        lacking = missing(graph)
        if lacking is not None:
            self.report.remarks.append(
                f"all tokens count alike: gradients do not pass the op {lacking} of {graph.arch}"
            )
            return self._run_layers()
        how = self.calibration
        with Gradients(self.layers, how.windows, how.folder, every=how.every) as self.gradients:
            self.gradients.measure(self.progress)
            return self._run_layers()

    def _run_layers(self) -> CalibrationReport:
        layers, windows = self.layers.count, self.calibration.windows
        self.progress.start("Calibrating", layers + 1)
        hidden: Floats | None = None
        for layer in range(layers + 1):
            part, last = self.layers.part(layer), layer == layers
            weights = self.layers.weights(part)
            if self.held_out is not None:
                self.held_out.enter(part, weights, last=last)
            self._round_embeddings(part, weights)
            walk = Walk(part, weights, windows, hidden, self.threads)
            usual = self._taken_over(part, weights)
            if usual is None:
                usual = self._round_slice(part, weights, walk, last=last)
            if not last:
                hidden = walk.output()
            del walk
            if self.held_out is not None:
                self.held_out.leave(part, weights, last=last)
                for name, rows in usual.items():
                    step = self.steps[name]
                    weights[name] = self._meaning(step, rows).reshape(step.source.shape)
                self.held_out.leave_nearest(part, weights, last=last)
            weights.clear()  # before the next slice is read
            give_back()
            self.progress.advance(1)
        if self.held_out is not None:
            self.report.held_out = self.held_out.losses()
        return self.report

    def _round_slice(
        self, part: Graph, weights: dict[str, Floats], walk: Walk, *, last: bool
    ) -> dict[str, Bytes]:
        """Round the weights of a slice, product by product, in `weights` too, where they stay until they have been
        gone through. Returns what rounding to nearest makes of them."""
        counting = {} if self.gradients is None else self.gradients.counting(part, self.calibration.plain)
        usual: dict[str, Bytes] = {}
        while (product := walk.product()) is not None:
            held = {} if self.held_out is None else self.held_out.inputs(part, weights)
            for name in () if last else usual.keys() & weights.keys() & walk.passed():
                del weights[name]
            if not any(map(self._is_rounded, product.names)):
                continue
            shape = weights[product.names[0]].shape
            experts = shape[0] if len(shape) == 3 else 1
            moments = input_moments(product, counting, experts, self.threads)
            usual |= self._round(weights, moments, held)
            del moments, product, held
            give_back()
        return usual

    def _round_embeddings(self, part: Graph, weights: dict[str, Floats]) -> None:
        """Weights that nothing is multiplied by here become what rounding to nearest makes of them: that is how they
        are written, but for an embedding that is the output as well, where it comes near."""
        for name in set(part.tensors) - set(multiplied(part)):
            if self._is_rounded(name) and weights[name].ndim == 2:
                step = self.steps[name]
                importance = None if step.importance is None else step.importance[0]
                weights[name] = self._meaning(step, native.quantize(weights[name], step.type, importance))

    def _taken_over(self, part: Graph, weights: dict[str, Floats]) -> dict[str, Bytes] | None:
        """If an earlier run has rounded this slice, `weights` become what it wrote; what rounding to nearest makes of
        them."""
        names = [name for name in multiplied(part) if self._is_rounded(name)]
        if not all(self.tensors.holds(self.steps[name]) for name in names):
            return None
        usual: dict[str, Bytes] = {}
        for name in names:
            step, shape = self.steps[name], self.steps[name].source.shape
            if self.held_out is not None:
                # The importance is not known any more: without one.
                stack = weights[name].reshape(-1, *weights[name].shape[-2:])
                usual[name] = np.concatenate(
                    [
                        _nearest(w, step, np.zeros(w.shape[1], np.float32), _scale(step, m))
                        for m, w in enumerate(stack)
                    ]
                )
            weights[name] = self._meaning(step, self.tensors.earlier(step)).reshape(shape)
        return usual

    # ---- rounding ----

    def _round(
        self, weights: dict[str, Floats], moments: InputMoments, held: Mapping[str, Floats]
    ) -> dict[str, Bytes]:
        """Round the weights that share an input, write them, and put what they have become into `weights`. `held`:
        inputs to judge matrices on. Returns what rounding to nearest makes of them."""
        jobs = [
            (name, m) for name in moments.names if self._is_rounded(name) for m in range(len(moments.counts))
        ]
        prepared = self._prepared(jobs, moments)
        # The rows of a large matrix without output moments are shared out over the threads, other matrices are.
        threads = self.threads if len(jobs) == 1 else 1

        def rounded(job: Job) -> _RoundedMatrix:
            name, m = job
            w = weights[name].reshape(-1, *weights[name].shape[-2:])[m]
            return self._matrix(self.steps[name], w, m, moments, prepared, held.get(name), threads)

        results = in_threads(rounded, jobs, self.threads if threads == 1 else 1)
        rows: dict[str, list[_RoundedMatrix]] = {}
        for (name, m), result in zip(jobs, results, strict=True):
            rows.setdefault(name, []).append(result)
            label = name if len(moments.counts) == 1 else f"{name}[{m}]"
            if result.reason is not None:
                self.report.nearest[label] = result.reason
            elif result.cost is not None:
                self.report.costs.append(MatrixCost(label, *result.cost))
        for name, parts in rows.items():
            step, shape = self.steps[name], self.steps[name].source.shape
            data = np.concatenate([part.data for part in parts])
            del weights[name]  # before what it has become takes as much memory
            weights[name] = self._meaning(step, data).reshape(shape)
            self.tensors.write(step, data)
        return {name: np.concatenate([part.nearest for part in parts]) for name, parts in rows.items()}

    def _prepared(self, jobs: Sequence[Job], moments: InputMoments) -> dict[Job, feedback.Moments]:
        """The moments of the inputs of `jobs`, made ready for their types' grids; their sums are given up for them."""
        mixed = {} if self.gradients is None else {name: self.gradients.mixed(name) for name, _ in jobs}
        keys = {
            (name, m): (
                rounding.sub_of(self.steps[name].type),
                m,
                name if mixed.get(name) is not None else "",
            )
            for name, m in jobs
            if self._reason(self.steps[name], moments, m) is None
        }
        wanted = {key: name for (name, _), key in keys.items()}

        def arranged(key: tuple[int, int, str]) -> feedback.ArrangedMoments:
            with naming(wanted[key]):
                h, tokens = moments.sums[key[1]], int(moments.counts[key[1]])
                damping = self.calibration.damping * max(1.0, ENOUGH * len(h) / tokens)
                own = mixed.get(key[2])
                return feedback.arranged(h if own is None else together(own, h), key[0], damping)

        def factored(found: tuple[str, feedback.ArrangedMoments]) -> feedback.Moments:
            with naming(found[0]):
                return found[1].factored(self.threads if len(wanted) == 1 else 1)

        all_arranged = in_threads(arranged, wanted, self.threads)
        moments.forget_sums()
        ready = in_threads(factored, zip(wanted.values(), all_arranged, strict=True), self.threads)
        found = dict(zip(wanted, ready, strict=True))
        return {job: found[key] for job, key in keys.items()}

    def _is_rounded(self, name: str) -> bool:
        step = self.steps.get(name)
        return step is not None and not step.copies and step.type.is_quantized

    def _meaning(self, step: Step, data: Bytes) -> Floats:
        """The weights that rows mean, scaled. Raises QuantizeError if they are not finite."""
        values = native.dequantize(data, step.type)
        if step.scales is not None:
            values.reshape(len(step.scales), -1)[:] *= step.scales[:, None]
        if not np.isfinite(values).all():
            raise QuantizeError(
                step.name,
                f"has weights that {step.type} cannot hold",
                hint=f"keep the tensor in F32: --tensor-type {step.name}=F32",
            )
        return values

    def _matrix(
        self,
        step: Step,
        w: Floats,
        matrix: int,
        moments: InputMoments,
        prepared: Mapping[Job, feedback.Moments],
        held: Floats | None,
        threads: int,
    ) -> _RoundedMatrix:
        """The rows of one matrix."""
        importance, scale = moments.mean_squares[matrix], _scale(step, matrix)
        usual = _nearest(w, step, importance, scale)
        reason = self._reason(step, moments, matrix)
        if reason is not None:
            return _RoundedMatrix(usual, usual, reason)
        own = None if self.gradients is None else self.gradients.of(step.name)
        # Groups of rows, each with moments of its gradients, if there are any: what is made on the way is small then.
        spans = groups(len(w))
        moments_of = own.moments if own is not None and own.moments else [None] * len(spans)
        data, costs = usual.copy(), []
        with naming(step.name):
            for span, g in zip(spans, moments_of, strict=True):
                group = _Group(
                    w[span],
                    step.type,
                    prepared[step.name, matrix],
                    importance,
                    None if g is None else feedback.prepare_outputs(g, self.calibration.output_damping),
                    scale,
                    threads,
                )
                data[span], cost = group.checked() if held is None else group.judged(held, usual[span])
                costs.append(cost)
        if all(cost is None for cost in costs):
            return _RoundedMatrix(usual, usual, "feedback does no better on windows held out")
        nearest, cost = np.sum([cost for cost in costs if cost is not None], axis=0).tolist()
        return _RoundedMatrix(data, usual, cost=(nearest, cost))

    def _reason(self, step: Step, moments: InputMoments, matrix: int) -> str | None:
        """Why a matrix is rounded to nearest, if it is."""
        if not rounding.supports(step.type):
            return f"{step.type} has no grid"
        if moments.counts[matrix] < FEWEST * moments.mean_squares.shape[1]:
            return "too few tokens of the text reach them"
        return None


@dataclass(frozen=True, slots=True)
class _Group:
    """Rows that are rounded together: `w` float32 [rows, cols]."""

    w: Floats
    type: QuantType
    moments: feedback.Moments
    importance: Floats
    outputs: feedback.OutputFactor | None
    scale: float
    threads: int

    def checked(self) -> tuple[Bytes, tuple[float, float] | None]:
        """The rows, and what they cost on the text: to nearest, and so."""
        rounded = self._rounded(self.outputs)
        return rounded.data, (rounded.nearest, rounded.cost)

    def judged(self, held: Floats, usual: Bytes) -> tuple[Bytes, tuple[float, float] | None]:
        """What is nearer on inputs that were held out than `usual`, or that, without costs."""
        nearest = self._error(usual, held)
        if self.outputs is not None:
            data = rounding.round_for_outputs(
                self.w,
                self.type,
                self.moments,
                self.importance,
                self.outputs,
                scale=self.scale,
                threads=self.threads,
            )
            cost = self._error(data, held)
            if cost < nearest:
                return data, (nearest, cost)
        data = self._rounded(None).data
        cost = self._error(data, held)
        return (data, (nearest, cost)) if cost < nearest else (usual, None)

    def _rounded(self, outputs: feedback.OutputFactor | None) -> rounding.Rounded:
        return rounding.round_matrix(
            self.w,
            self.type,
            self.moments,
            self.importance,
            outputs=outputs,
            scale=self.scale,
            threads=self.threads,
        )

    def _error(self, rows: Bytes, held: Floats) -> float:
        error = self.w - native.dequantize(rows, self.type) * np.float32(self.scale or 1)
        return output_error(error, held, self.outputs)


def _nearest(w: Floats, step: Step, importance: Floats, scale: float) -> Bytes:
    known = importance if importance.any() else np.ones_like(importance)
    return rounding.nearest(w, step.type, known, scale)


def _scale(step: Step, matrix: int) -> float:
    """The per-tensor scale of NVFP4, or 0."""
    return 0.0 if step.scales is None else float(step.scales[matrix])
