"""The heavy part of rounding with error feedback: a slice's weights, and some windows on their way through it.

A `Site` does what its messages say. There is one where a machine works alone, and one in each worker of a team; every
site has the same slice, and all go on to the next product together (`streaming.calibrated`).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from loragraft.arrays import Bytes, Floats
from loragraft.backends.program import Backend
from loragraft.errors import QuantizeError, naming
from loragraft.graph.ops import Graph
from loragraft.quants import feedback, native, rounding
from loragraft.quants.arranged import Moments
from loragraft.quants.types import QuantType
from loragraft.streaming.calibration import Calibration
from loragraft.streaming.held_out import HeldOut, HeldOutState, output_error
from loragraft.streaming.layers import Layers, multiplied
from loragraft.streaming.moments import InputMoments, MomentSums, moment_sums
from loragraft.streaming.output_gradients import GradientPasses, groups
from loragraft.streaming.plan import WritePlan
from loragraft.streaming.rows import floats_of
from loragraft.streaming.spreading import check_same, take_scales
from loragraft.streaming.steps import Chunk, Step
from loragraft.streaming.walk import Walk
from loragraft.streaming.writing import steps_digest
from loragraft.system import blas
from loragraft.system.memory import give_back, keep_arrays
from loragraft.system.threads import in_threads
from loragraft.system.workers.team import Message

#: Tokens for each column that moments need to be trusted as they are; with fewer, damping grows.
ENOUGH = 4
#: An expert that fewer tokens than this for each of its columns reached is rounded to nearest.
FEWEST = 0.25
#: The part of plain second moments in those of values, which attention mixes.
APART = 0.3


def together(mixed: Floats, plain: Floats) -> Floats:
    """Second moments of what attention mixes, and, in the part `APART`, of what it mixes."""
    share = np.float32((1 - APART) * np.trace(plain) / np.trace(mixed))
    return np.asarray(share * mixed + np.float32(APART) * plain)


def is_rounded(step: Step | None) -> bool:
    return step is not None and not step.copies and step.type.is_quantized


@dataclass(frozen=True, slots=True)
class Job:
    """Rows of the matrix number `matrix` of a weight: those of group number `group`, by the moments of their gradients,
    if there are any."""

    name: str
    matrix: int
    group: int


@dataclass(frozen=True, slots=True)
class RoundedRows:
    """The rows, and rounded to nearest (None if nobody wants to know); why that is what they are, or what both cost."""

    data: Bytes
    nearest: Bytes | None
    reason: str | None = None
    cost: tuple[float, float] | None = None


class Site:
    """`steps` by name are the plan's; windows are those of `calibration`."""

    def __init__(self, layers: Layers, calibration: Calibration) -> None:
        self.layers, self.calibration = layers, calibration
        self.passes = GradientPasses(layers, calibration.windows[:: calibration.every])
        self.weights: dict[str, Floats] = {}
        self._threads = layers.threads
        self._last = False
        self._part: Graph | None = None
        self._walk: Walk | None = None
        self._counting: Mapping[str, Floats] = {}
        self._leaf: int | None = None
        self._held_out: HeldOut | None = None
        self._earlier: dict[str, Bytes] = {}
        self._rounded: set[str] = set()

    # ---- what messages ask for ----

    def enter(self, message: Enter) -> None:
        """Be at the beginning of a slice."""
        self._part, self._last = self.layers.part(message.layer), message.layer == self.layers.count
        self._rounded, self._earlier, self._leaf = set(), {}, message.leaf
        self.weights.clear()
        self.weights.update(self.layers.weights(self._part))
        self._held_out = None
        if message.held_out is not None:
            self._held_out = HeldOut(self.layers, self.calibration.judged, message.held_out)
            self._held_out.enter(self._part, self.weights, last=self._last)
        self._round_embeddings(self._part)
        self._walk = None
        if message.span:
            windows = self.calibration.windows[message.span.start : message.span.stop]
            self._walk = Walk(self._part, self.weights, windows, message.hidden, self._threads)
        self._counting = message.counting
        give_back()

    def next_product(self, message: NextProduct) -> Reached:
        """Put rows in the place of weights and go on to the next product that is asked for."""
        self._replace(message.rows)
        held: Mapping[str, Floats] = {}
        if self._held_out is not None:
            held = self._held_out.inputs(self._graph, self.weights, message.names)
        if self._walk is None:
            return Reached(None, held)
        product = self._walk.product_of(message.names)
        for name in () if self._last else self._rounded & self.weights.keys() & self._walk.passed():
            del self.weights[name]
        sums = None
        if message.summed:
            shape = self.weights[product.names[0]].shape
            experts = shape[0] if len(shape) == 3 else 1
            sums = moment_sums(product, self._counting, experts, self._threads, self._leaf)
        del product
        give_back()
        return Reached(sums, held)

    def round(self, message: Round) -> list[RoundedRows]:
        """The rows of the jobs."""
        return _Rounder(self, message).rounded()

    def leave(self, message: Leave) -> Left:
        """Go on to the end of the slice."""
        self._replace(message.rows)
        hidden = None if self._walk is None or self._last else self._walk.output()
        self._walk = None
        state = None
        if self._held_out is not None:
            part, usual = self._graph, {**self._earlier, **message.nearest}
            self._held_out.leave(part, self.weights, last=self._last)
            for name, rows in usual.items():
                self.weights[name] = self._meaning(name, rows)
            self._held_out.leave_nearest(part, self.weights, last=self._last)
            state = self._held_out.state
        self.weights.clear()  # before the next slice is read
        self._earlier.clear()
        give_back()
        return Left(hidden, state)

    def take_over(self, rows: Mapping[str, Bytes]) -> None:
        """What an earlier run has rounded: the importance is not known any more, so nearest is without one."""
        for name in rows if self._held_out is not None else ():
            step, w = self.layers.steps[name], self.weights[name]
            stack = w.reshape(-1, *w.shape[-2:])
            zeros = np.zeros(w.shape[-1], np.float32)
            self._earlier[name] = np.concatenate(
                [nearest(matrix, step, zeros, scale_of(step, m)) for m, matrix in enumerate(stack)]
            )
        self._replace(rows)

    # ---- weights ----

    @property
    def _graph(self) -> Graph:
        assert self._part is not None
        return self._part

    def _replace(self, rows: Mapping[str, Bytes]) -> None:
        for name, data in rows.items():
            self._rounded.add(name)
            self.weights.pop(name, None)  # before what it has become takes as much memory
            self.weights[name] = self._meaning(name, data)

    def _round_embeddings(self, part: Graph) -> None:
        """Weights that nothing is multiplied by here become what rounding to nearest makes of them: that is how they
        are written, but for an embedding that is the output as well, where it comes near."""
        for name in set(part.tensors) - set(multiplied(part)):
            step = self.layers.steps[name]
            if is_rounded(step) and self.weights[name].ndim == 2:
                importance = None if step.importance is None else step.importance[0]
                self.weights[name] = self._meaning(
                    name, native.quantize(self.weights[name], step.type, importance)
                )

    def _meaning(self, name: str, data: Bytes) -> Floats:
        """The weights that rows mean, scaled. Raises QuantizeError if they are not finite."""
        step = self.layers.steps[name]
        values = native.dequantize(data, step.type)
        if step.scales is not None:
            values.reshape(len(step.scales), -1)[:] *= step.scales[:, None]
        if not np.isfinite(values).all():
            raise QuantizeError(
                step.name,
                f"has weights that {step.type} cannot hold",
                hint=f"keep the tensor in F32: --tensor-type {step.name}=F32",
            )
        return values.reshape(step.source.shape)


class _Rounder:
    """Rounds the jobs of a message."""

    def __init__(self, site: Site, message: Round) -> None:
        self._site, self._message = site, message
        self._moments, self._steps = message.moments, site.layers.steps
        self._threads, self._how = site.layers.threads, site.calibration

    def rounded(self) -> list[RoundedRows]:
        by_matrix: dict[tuple[str, int], list[Job]] = {}
        for job in self._message.jobs:
            by_matrix.setdefault((job.name, job.matrix), []).append(job)
        prepared = self._prepared(list(by_matrix))
        # The rows of a large matrix without output moments are shared out over the threads, other matrices are.
        threads = self._threads if len(by_matrix) == 1 else 1

        def of_matrix(key: tuple[str, int]) -> list[RoundedRows]:
            return [self._rows(job, prepared.get(key), threads) for job in by_matrix[key]]

        found = in_threads(of_matrix, by_matrix, self._threads if threads == 1 else 1)
        rows = dict(zip(by_matrix, map(iter, found), strict=True))
        return [next(rows[job.name, job.matrix]) for job in self._message.jobs]

    def _prepared(self, matrices: Sequence[tuple[str, int]]) -> dict[tuple[str, int], Moments]:
        """The moments of the inputs of `matrices`, made ready for their types' grids; their sums are given up for
        them."""
        moments, mixed = self._moments, self._message.mixed
        keys = {
            (name, m): (rounding.sub_of(self._steps[name].type), m, name if name in mixed else "")
            for name, m in matrices
            if reason_of(self._steps[name], moments, m) is None
        }
        wanted = {key: name for (name, _), key in keys.items()}

        def arranged(key: tuple[int, int, str]) -> feedback.ArrangedMoments:
            with naming(wanted[key]):
                place = self._message.summed.index(key[1])
                h, tokens = moments.sums[place], int(moments.counts[key[1]])
                damping = self._how.damping * max(1.0, ENOUGH * len(h) / tokens)
                own = mixed.get(key[2])
                return feedback.arranged(h if own is None else together(own, h), key[0], damping)

        def factored(found: tuple[str, feedback.ArrangedMoments]) -> Moments:
            with naming(found[0]):
                return found[1].factored(self._threads if len(wanted) == 1 else 1)

        all_arranged = in_threads(arranged, wanted, self._threads)
        moments.forget_sums()
        ready = in_threads(factored, zip(wanted.values(), all_arranged, strict=True), self._threads)
        found = dict(zip(wanted, ready, strict=True))
        return {matrix: found[key] for matrix, key in keys.items()}

    def _rows(self, job: Job, prepared: Moments | None, threads: int) -> RoundedRows:
        step, whole = self._steps[job.name], self._site.weights[job.name]
        matrix = whole.reshape(-1, *whole.shape[-2:])[job.matrix]
        span = groups(len(matrix))[job.group]
        w = matrix[span]
        importance, scale = self._moments.mean_squares[job.matrix], scale_of(step, job.matrix)
        usual = nearest(w, step, importance, scale)
        told = usual if self._message.telling else None
        reason = reason_of(step, self._moments, job.matrix)
        if reason is not None or prepared is None:
            return RoundedRows(usual, told, reason)
        g, held = self._message.outputs.get((job.name, job.group)), self._message.held.get(job.name)
        with naming(step.name):
            outputs = None if g is None else feedback.prepare_outputs(g, self._how.output_damping)
            first = job.matrix * step.matrix_rows + span.start
            change = None if outputs is None else change_of(step, w, first)
            group = _Group(w, step.type, prepared, importance, outputs, change, scale, threads)
            data, cost = group.checked() if held is None else group.judged(held, usual)
        return RoundedRows(data, told, cost=cost)


def reason_of(step: Step, moments: InputMoments, matrix: int) -> str | None:
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
    moments: Moments
    importance: Floats
    outputs: feedback.OutputFactor | None
    change: Floats | None
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
                change=self.change,
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
            change=self.change,
            scale=self.scale,
            threads=self.threads,
        )

    def _error(self, rows: Bytes, held: Floats) -> float:
        error = self.w - native.dequantize(rows, self.type) * np.float32(self.scale or 1)
        return output_error(error, held, self.outputs)


def nearest(w: Floats, step: Step, importance: Floats, scale: float) -> Bytes:
    known = importance if importance.any() else np.ones_like(importance)
    return rounding.nearest(w, step.type, known, scale)


def change_of(step: Step, w: Floats, first: int) -> Floats | None:
    """What adapters have added to `w`, rows of `step` from `first` on; None if there are none."""
    if not step.deltas:
        return None
    return w - floats_of(Chunk(replace(step, deltas=()), first, first + len(w)), rounded=False)


def scale_of(step: Step, matrix: int) -> float:
    """The per-tensor scale of NVFP4, or 0."""
    return 0.0 if step.scales is None else float(step.scales[matrix])


# ---- messages ----


@dataclass(frozen=True, slots=True)
class Enter:
    """Begin with a slice, with the windows of `span`, whose `hidden` states [tokens, d] enter it; `counting`: how much
    their tokens count. `leaf`: the number of the first leaf, if these are not all windows. `held_out`: whether, and
    with what, those that are held out go along. `earlier`: rows that an earlier run has made."""

    layer: int
    span: range
    hidden: Floats | None
    counting: Mapping[str, Floats]
    leaf: int | None
    held_out: HeldOutState | None
    earlier: Mapping[str, Bytes] = field(default_factory=dict)

    def do(self, site: Site) -> None:
        site.enter(self)
        if self.earlier:
            site.take_over(self.earlier)


@dataclass(frozen=True, slots=True)
class Reached:
    """The next product: what its inputs add to the moments, and some inputs that are held out, by weight."""

    sums: MomentSums | None = None
    held: Mapping[str, Floats] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NextProduct:
    """Go on to the product of `names`. `rows`: what the weights of the last one have become; `summed`: whether sums are
    wanted."""

    names: tuple[str, ...]
    rows: Mapping[str, Bytes]
    summed: bool = True

    def do(self, site: Site) -> Reached:
        return site.next_product(self)


@dataclass(frozen=True, slots=True)
class Round:
    """`moments` of the inputs, whose sums are those of the matrices `summed` only; `mixed`: what attention mixes, by
    weight; `outputs`: moments of gradients by weight and group; `held`: inputs to judge by. `telling`: whether nearest
    rounding is wanted too."""

    jobs: Sequence[Job]
    moments: InputMoments
    summed: Sequence[int]
    mixed: Mapping[str, Floats]
    outputs: Mapping[tuple[str, int], Floats]
    held: Mapping[str, Floats]
    telling: bool

    def do(self, site: Site) -> list[RoundedRows]:
        return site.round(self)


@dataclass(frozen=True, slots=True)
class Left:
    """The hidden states that leave a slice, and those held out."""

    hidden: Floats | None
    held_out: HeldOutState | None


@dataclass(frozen=True, slots=True)
class Leave:
    """`rows` as of `NextProduct`; `nearest`: the slice's weights rounded to nearest, where windows are held out."""

    rows: Mapping[str, Bytes]
    nearest: Mapping[str, Bytes]

    def do(self, site: Site) -> Left:
        return site.leave(self)


# ---- workers ----

Replan = Callable[[], WritePlan]
"""Picklable. Makes in a worker the plan that the driver made."""


@dataclass(frozen=True)
class SiteMaker:
    """Makes a worker's function: picklable, and called where the work is done."""

    replan: Replan
    digest: str
    """Of the driver's steps, which the worker's must be."""
    scales: Mapping[str, npt.NDArray[np.float32]]
    calibration: Calibration
    backend: Backend
    threads: int
    folder: str
    """Where the driver works: its paths may be relative."""

    def __call__(self) -> Callable[[Message], Any]:
        with contextlib.suppress(OSError):
            os.chdir(self.folder)
        keep_arrays()
        plan = self.replan()
        take_scales(plan.steps, self.scales)
        check_same(steps_digest(plan.steps), self.digest)
        site = Site(Layers(plan, self.backend, self.threads), self.calibration)

        def do(message: Message) -> Any:
            with blas.one_thread():
                return message.do(site)

        return do
