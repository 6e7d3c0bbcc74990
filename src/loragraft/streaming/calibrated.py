"""Rounding with error feedback, layer by layer, on a text.

The hidden states of all windows go through one layer at a time. Its inputs' second moments are summed, its weights are
rounded with feedback under them, written, and the layer runs again as rounded: later layers see what earlier ones have
become, and make up for it. Only one layer's weights and moments are in memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from loragraft.archs.graphs import build_graph
from loragraft.backends.batch import Floats, Ids, Piece
from loragraft.backends.program import Backend, Options, Program
from loragraft.errors import QuantizeError, naming
from loragraft.formats.gguf.scales import companion
from loragraft.formats.source import Bytes
from loragraft.graph.ops import Graph, Op, TensorFact
from loragraft.graph.slices import slice_graph
from loragraft.progress import SILENT, Progress
from loragraft.quants import feedback, native, rounding
from loragraft.quants.grids import GRIDS
from loragraft.streaming.moments import InputMoments, MomentSums
from loragraft.streaming.output_gradients import Gradients
from loragraft.streaming.plan import WritePlan
from loragraft.streaming.rows import floats_of
from loragraft.streaming.steps import Chunk, Step, chunks
from loragraft.streaming.sweep import sweep
from loragraft.streaming.writing import WholeTensors
from loragraft.system.threads import in_threads

#: Tokens that go through a layer at once.
BATCH = 2048
#: An expert that fewer tokens than this for each of its columns reached is rounded to nearest.
FEWEST = 0.25


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
    folder: Path | None = None


@dataclass(frozen=True, slots=True)
class MatrixCost:
    """What rounding a matrix costs its outputs on the text, in squares: to nearest, and as it was done."""

    name: str
    nearest: float
    cost: float


@dataclass
class CalibrationReport:
    """`costs`: of every matrix that was rounded with feedback; `nearest`: names of those that were not, and why."""

    costs: list[MatrixCost] = field(default_factory=list)
    nearest: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def notes(self) -> list[str]:
        """What the user should know."""
        reasons: dict[str, list[str]] = {}
        for name, reason in self.nearest.items():
            reasons.setdefault(reason, []).append(name)
        return self.remarks + [
            f"{len(names)} tensors are rounded to nearest: {reason} ({', '.join(names[:3])}"
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


Job = tuple[str, int, InputMoments]
"""A weight, which of its matrices, and its inputs' moments."""


class _SeenError(Exception):
    """Ends a pass that has shown what it was to show."""


class _Watch:
    """Sums the inputs of `products`, and ends a batch once all were seen: what the last one gives is not wanted."""

    def __init__(self, sums: MomentSums, products: Sequence[str]) -> None:
        self._sums, self._products = sums, products
        self._left: dict[str, int] = {}

    def begin(self, rows: int) -> None:
        """A batch of so many rows."""
        self._left = dict.fromkeys(self._products, rows)

    def observe(self, names: tuple[str, ...], x: Floats, ids: Ids | None) -> None:
        self._sums.observe(names, x, ids)
        for name in names:
            self._left[name] -= len(x)
        if not any(self._left.values()):
            raise _SeenError


class _Rounding:
    def __init__(
        self,
        plan: WritePlan,
        calibration: Calibration,
        backend: Backend,
        tensors: WholeTensors,
        threads: int,
        progress: Progress,
    ) -> None:
        self.steps = {step.name: step for step in plan.steps}
        self.calibration, self.backend, self.tensors = calibration, backend, tensors
        self.threads, self.progress = threads, progress
        self.graph = build_graph(plan.metadata, _facts(self.steps))
        self.report = CalibrationReport()
        self.gradients: Gradients | None = None

    def run(self) -> CalibrationReport:
        if not self.calibration.gradients:
            return self._run_layers()
        lacking = Gradients.lacking(self.graph)
        if lacking is not None:
            self.report.remarks.append(
                f"all tokens count alike: gradients do not pass the op {lacking} of {self.graph.arch}"
            )
            return self._run_layers()
        with Gradients(
            self.graph, self._weights, self._forward, self.calibration.windows, self.calibration.folder
        ) as self.gradients:
            self.gradients.measure(self.progress)
            return self._run_layers()

    def _run_layers(self) -> CalibrationReport:
        layers = len(self.graph.cuts) - 1
        self.progress.start("Calibrating", layers)
        hidden: Floats | None = None
        for layer in range(layers):
            part = slice_graph(self.graph, layer, layer + 1)
            weights = self._weights(part)
            if not self._take_over(part, weights):
                self._round(weights, self._moments(part, weights, hidden))
            hidden = self._forward(part, weights, hidden)
            self.progress.advance(1)
        part = slice_graph(self.graph, layers)
        weights = self._weights(part)
        if not self._take_over(part, weights):
            self._round(weights, self._moments(part, weights, hidden, last=True))
        return self.report

    def _take_over(self, part: Graph, weights: dict[str, Floats]) -> bool:
        """Whether an earlier run has rounded this slice; then `weights` become what it wrote."""
        names = [name for name in _multiplied(part) if self._is_rounded(name)]
        if not all(self.tensors.holds(self.steps[name]) for name in names):
            return False
        for name in names:
            step = self.steps[name]
            weights[name][:] = self._meaning(step, self.tensors.earlier(step)).reshape(step.source.shape)
        return True

    def _weights(self, part: Graph) -> dict[str, Floats]:
        """The merged weights of a slice in float32, and its other tensors."""
        return {name: self._floats(self.steps[name]) for name in part.tensors}

    def _floats(self, step: Step) -> Floats:
        out = np.empty((step.source.n_rows, step.source.columns), np.float32)

        def read(chunk: Chunk) -> None:
            out[chunk.start : chunk.stop] = floats_of(chunk)

        sweep(chunks(step), read, threads=self.threads)
        scale = self.steps.get(companion(step.name, "scale"))
        if scale is not None and step.copies:
            values = scale.source.rows(0, 1).view(np.float32).reshape(-1)
            out.reshape(len(values), -1)[:] *= values[:, None]
        return out.reshape(step.source.shape)

    # ---- running ----

    def _moments(
        self, part: Graph, weights: Mapping[str, Floats], hidden: Floats | None, *, last: bool = False
    ) -> list[InputMoments]:
        experts = {name: len(values) for name, values in weights.items() if values.ndim == 3}
        sums = MomentSums(experts, self._counting(part))
        program = self._program(part, weights)
        watch = _Watch(sums, _multiplied(part))
        program.observer = watch.observe
        self._run(program, hidden, wants="all" if last else "none", watch=watch)
        return sums.result()

    def _counting(self, part: Graph) -> dict[str, Floats]:
        """How much each token counts for the weights of a slice."""
        if self.gradients is None:
            return {}
        found = {name: self.gradients.of(name) for name in _multiplied(part)}
        plain = np.float32(self.calibration.plain)
        return {name: plain + (1 - plain) * own.squares for name, own in found.items() if own is not None}

    def _forward(self, part: Graph, weights: Mapping[str, Floats], hidden: Floats | None) -> Floats:
        return self._run(self._program(part, weights), hidden)

    def _program(self, part: Graph, weights: Mapping[str, Floats]) -> Program:
        options = Options(threads=self.threads, activations="f32", keys_values="f32")
        return self.backend.prepare(part, weights, options)

    def _run(
        self,
        program: Program,
        hidden: Floats | None,
        wants: Literal["all", "none"] = "none",
        watch: _Watch | None = None,
    ) -> Floats:
        windows = self.calibration.windows
        count, length = windows.shape
        at_once = max(1, BATCH // length)
        outputs = []
        for first in range(0, count, at_once):
            here = windows[first : first + at_once]
            pieces = [Piece(program.open_sequence(), window, wants=wants) for window in here]
            rows = slice(first * length, (first + len(here)) * length)
            if watch is not None:
                watch.begin(len(here) * length)
            with suppress(_SeenError):
                outputs.append(program.run(pieces, None if hidden is None else hidden[rows]))
            for piece in pieces:
                program.close_sequence(piece.sequence)
        return np.concatenate(outputs) if outputs else np.empty((0, program.width), np.float32)

    # ---- rounding ----

    def _round(self, weights: dict[str, Floats], inputs: Sequence[InputMoments]) -> None:
        """Round the weights of a slice, write them, and put what they have become into `weights`."""
        jobs = [
            (name, m, moments)
            for moments in inputs
            for name in moments.names
            if self._is_rounded(name)
            for m in range(len(moments.sums))
        ]
        prepared = self._prepared(jobs)
        # The rows of a large matrix without output moments are shared out over the threads, other matrices are.
        threads = self.threads if len(jobs) == 1 else 1

        def rounded(job: Job) -> tuple[Bytes, MatrixCost | str]:
            name, m, moments = job
            w = weights[name].reshape(-1, *weights[name].shape[-2:])[m]
            return self._matrix(self.steps[name], w, m, moments, prepared, threads)

        results = in_threads(rounded, jobs, self.threads if threads == 1 else 1)
        rows: dict[str, list[Bytes]] = {}
        for (name, m, moments), (data, found) in zip(jobs, results, strict=True):
            rows.setdefault(name, []).append(data)
            label = name if len(moments.sums) == 1 else f"{name}[{m}]"
            if isinstance(found, str):
                self.report.nearest[label] = found
            else:
                self.report.costs.append(found)
        for name, parts in rows.items():
            step = self.steps[name]
            data = np.concatenate(parts)
            weights[name][:] = self._meaning(step, data).reshape(step.source.shape)
            self.tensors.write(step, data)

    def _prepared(self, jobs: Sequence[Job]) -> dict[tuple[int, int, int], feedback.Moments]:
        """The moments of the inputs of `jobs`, made ready for their types' grids."""
        wanted = {
            (id(moments), GRIDS[self.steps[name].type.name].sub, m): (name, moments)
            for name, m, moments in jobs
            if self._reason(self.steps[name], moments, m) is None
        }

        def made(key: tuple[int, int, int]) -> feedback.Moments:
            name, moments = wanted[key]
            with naming(name):
                return feedback.prepare(moments.sums[key[2]], key[1], self.calibration.damping)

        return dict(zip(wanted, in_threads(made, wanted, self.threads), strict=True))

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
        prepared: Mapping[tuple[int, int, int], feedback.Moments],
        threads: int,
    ) -> tuple[Bytes, MatrixCost | str]:
        """The rows of one matrix; what they cost, or why they are rounded to nearest."""
        importance = moments.mean_squares(matrix)
        name = step.name if step.source.n_rows == len(w) else f"{step.name}[{matrix}]"
        scale = 0.0 if step.scales is None else float(step.scales[matrix])
        reason = self._reason(step, moments, matrix)
        if reason is not None:
            return _nearest(w, step, importance, scale), reason
        own = None if self.gradients is None else self.gradients.of(step.name)
        with naming(name):
            outputs = None
            if own is not None and own.moments is not None:
                outputs = feedback.prepare_outputs(own.moments, self.calibration.output_damping)
            rounded = rounding.round_matrix(
                w,
                step.type,
                prepared[id(moments), GRIDS[step.type.name].sub, matrix],
                importance,
                outputs=outputs,
                scale=scale,
                threads=threads,
            )
        return rounded.data, MatrixCost(name, rounded.nearest, rounded.cost)

    def _reason(self, step: Step, moments: InputMoments, matrix: int) -> str | None:
        """Why a matrix is rounded to nearest, if it is."""
        if not rounding.supports(step.type):
            return f"{step.type} has no grid"
        if moments.counts[matrix] < FEWEST * len(moments.sums[matrix]):
            return "too few tokens of the text reach them"
        return None


def _nearest(w: Floats, step: Step, importance: Floats, scale: float) -> Bytes:
    known = importance if importance.any() else np.ones_like(importance)
    if scale:
        return native.quantize_nvfp4(w, scale, known)
    return native.quantize(w, step.type, known)


def _multiplied(part: Graph) -> list[str]:
    """The weights of a slice's linear layers."""
    products = (Op.MATMUL, Op.EXPERTS_MATMUL)
    return list(dict.fromkeys(node.weights[0] for node in part.nodes if node.op in products))


def _facts(steps: Mapping[str, Step]) -> dict[str, TensorFact]:
    """The merged model's tensors, without the scales that belong to stored weights."""
    scales = {companion(name, part) for name in steps for part in ("scale", "input_scale")}
    return {name: TensorFact(step.source.shape, "F32") for name, step in steps.items() if name not in scales}
