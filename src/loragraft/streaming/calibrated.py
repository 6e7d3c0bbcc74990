"""Rounding with error feedback, product by product, on a text.

The hidden states of all windows go through the model together. Before each product they wait: its inputs' second
moments are summed, its weights are rounded with feedback under them and written, and the windows go on through the
rounded ones. So each later product sees what the earlier ones have become. Only one layer's weights and one product's
moments are in memory.

The windows, and the matrices of a product, are shared out over the places of a team (`streaming.rounding_site`); a
machine that works alone has one place. Sums are added in an order of their own (`streaming.tree`), so the bytes are the
same for any team.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import takewhile

import numpy as np

from loragraft.arrays import Bytes, Floats
from loragraft.backends.gradients import missing
from loragraft.backends.program import Backend
from loragraft.graph.ops import Graph
from loragraft.progress import SILENT, Progress
from loragraft.streaming.calibration import Calibration, CalibrationReport, MatrixCost
from loragraft.streaming.held_out import HeldOutState, losses_of
from loragraft.streaming.layers import Layers, multiplied
from loragraft.streaming.moments import LEAF, InputMoments, whole_moments
from loragraft.streaming.output_gradients import Gradients, at_a_time, groups, spans
from loragraft.streaming.plan import WritePlan
from loragraft.streaming.rounding_site import (
    Enter,
    Job,
    Leave,
    Left,
    NextProduct,
    Reached,
    Replan,
    Round,
    RoundedRows,
    Site,
    SiteMaker,
    is_rounded,
    reason_of,
)
from loragraft.streaming.steps import Step
from loragraft.streaming.walk import products_of
from loragraft.streaming.writing import WholeTensors, steps_digest
from loragraft.system import blas
from loragraft.system.memory import give_back
from loragraft.system.workers.crew import Crew
from loragraft.system.workers.team import Alone, Placed, Team

#: A window that is held out takes as long as so many others: it goes through each layer three times.
JUDGING = 2


@dataclass(frozen=True)
class Hands:
    """Workers to round with: `replan` makes in each of them the plan that the driver made; each has `threads`."""

    crew: Crew
    replan: Replan
    threads: int


def round_layers(
    plan: WritePlan,
    calibration: Calibration,
    backend: Backend,
    tensors: WholeTensors,
    *,
    threads: int,
    hands: Hands | None = None,
    progress: Progress = SILENT,
) -> CalibrationReport:
    """Round the linear layers of `plan` on the text; they are written to `tensors`. With `hands` the workers do it.

    Raises QuantizeError, and LoragraftError for activations that are not finite, and for workers that keep dying.
    """
    layers = Layers(plan, backend, threads)
    with blas.one_thread(), _team(layers, plan, calibration, backend, hands, progress) as team:
        return _Rounding(layers, calibration, team, tensors, progress).run()


@contextmanager
def _team(
    layers: Layers,
    plan: WritePlan,
    calibration: Calibration,
    backend: Backend,
    hands: Hands | None,
    progress: Progress,
) -> Iterator[Team]:
    if hands is None:
        yield Alone(Site(layers, calibration))
        return
    make = SiteMaker(
        hands.replan,
        steps_digest(plan.steps),
        {step.name: step.scales for step in plan.steps if step.scales is not None},
        replace(calibration, folder=None),
        backend,
        hands.threads,
        os.getcwd(),
    )
    team = Placed(hands.crew, make)
    yield team
    team.close()
    if team.lost:
        progress.note(f"{team.lost} of the workers died; what they were doing was done again")


@dataclass
class _Product:
    """What has become of the weights of a product, by name; `nearest`: of all products of the slice so far, if windows
    are held out."""

    rows: dict[str, Bytes] = field(default_factory=dict)
    nearest: dict[str, Bytes] = field(default_factory=dict)


class _Rounding:
    """The pass of `round_layers`."""

    def __init__(
        self,
        layers: Layers,
        calibration: Calibration,
        team: Team,
        tensors: WholeTensors,
        progress: Progress,
    ) -> None:
        self.layers, self.steps = layers, layers.steps
        self.calibration, self.tensors = calibration, tensors
        self.team, self.progress = team, progress
        self.report = CalibrationReport()
        self.gradients: Gradients | None = None
        held = sum(map(len, calibration.judged.values()))
        self.spans = spans(calibration.windows, LEAF, team.size, JUDGING * held)
        self.judge = team.size - 1 if held else None
        """The place whose windows those that are held out go along with."""

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
        with Gradients(
            self.layers, how.windows, how.folder, every=how.every, team=self.team
        ) as self.gradients:
            done = (self._is_done(self.layers.part(layer)) for layer in range(self.layers.count))
            self.gradients.measure(self.progress, sum(1 for _ in takewhile(bool, done)))
            return self._run_layers()

    def _run_layers(self) -> CalibrationReport:
        layers = self.layers.count
        self.progress.start("Calibrating", layers + 1)
        left = [
            Left(None, HeldOutState() if place == self.judge else None) for place in range(self.team.size)
        ]
        for layer in range(layers + 1):
            part = self.layers.part(layer)
            earlier = self._earlier(part)
            self._enter(layer, part, left, earlier)
            product = _Product()
            for names in products_of(part) if earlier is None else ():
                if any(map(self._is_rounded, names)):
                    product = self._product(names, product)
            messages = [
                Leave(product.rows, product.nearest if place == self.judge else {})
                for place in range(self.team.size)
            ]
            left = self.team.step(messages)
            give_back()
            self.progress.advance(1)
        if self.judge is not None:
            state = left[self.judge].held_out
            assert state is not None
            self.report.held_out = losses_of(self.calibration.judged, state)
        return self.report

    def _enter(
        self, layer: int, part: Graph, left: Sequence[Left], earlier: Mapping[str, Bytes] | None
    ) -> None:
        """Have all places begin with a slice, with what has `left` the last one."""
        how, length = self.calibration, self.calibration.windows.shape[1]
        counting = {} if self.gradients is None else self.gradients.counting(part, how.plain)
        alone = sum(map(bool, self.spans)) == 1
        messages = []
        for span, last in zip(self.spans, left, strict=True):
            rows = slice(span.start * length, span.stop * length)
            messages.append(
                Enter(
                    layer,
                    span,
                    last.hidden,
                    {name: counts[rows] for name, counts in counting.items()},
                    None if alone else span.start // (LEAF * at_a_time(length)),
                    last.held_out,
                    earlier or {},
                )
            )
        self.team.forget()
        self.team.step(messages)
        for place, message in enumerate(messages):
            self.team.remember(place, message)

    def _earlier(self, part: Graph) -> dict[str, Bytes] | None:
        """What an earlier run wrote of this slice, if it wrote all."""
        if not self._is_done(part):
            return None
        return {step.name: self.tensors.earlier(step) for step in self._steps_of(part)}

    def _is_done(self, part: Graph) -> bool:
        return all(map(self.tensors.holds, self._steps_of(part)))

    def _steps_of(self, part: Graph) -> list[Step]:
        return [self.steps[name] for name in multiplied(part) if self._is_rounded(name)]

    # ---- rounding ----

    def _product(self, names: tuple[str, ...], last: _Product) -> _Product:
        """Round the weights of a product, behind the `last` one, and write them."""
        message = NextProduct(names, last.rows)
        reached: list[Reached] = self.team.step([message] * self.team.size)
        for place in range(self.team.size):
            self.team.remember(place, replace(message, summed=False))
        held = {} if self.judge is None else reached[self.judge].held
        moments = whole_moments([one.sums for one in reached if one.sums is not None])
        del reached
        jobs = [
            Job(name, matrix, group)
            for name in names
            if self._is_rounded(name)
            for matrix in range(len(moments.counts))
            for group in range(len(groups(self.steps[name].matrix_rows)))
        ]
        found = self._rounded(jobs, moments, held)
        product = _Product({}, last.nearest)
        for name in dict.fromkeys(job.name for job in jobs):
            self._report(name, jobs, found)
            parts = [found[job] for job in jobs if job.name == name]
            product.rows[name] = np.concatenate([part.data for part in parts])
            if self.judge is not None:
                product.nearest[name] = np.concatenate([p.nearest for p in parts if p.nearest is not None])
            self.tensors.write(self.steps[name], product.rows[name])
        return product

    def _rounded(
        self, jobs: Sequence[Job], moments: InputMoments, held: Mapping[str, Floats]
    ) -> dict[Job, RoundedRows]:
        """What the places make of the jobs; the sums of `moments` are given up for it."""
        mixed: dict[str, Floats] = {}
        outputs: dict[tuple[str, int], Floats] = {}
        for name in dict.fromkeys(job.name for job in jobs) if self.gradients is not None else ():
            assert self.gradients is not None
            if (own_mixed := self.gradients.mixed(name)) is not None:
                mixed[name] = own_mixed
            own = self.gradients.of(name)
            outputs |= {(name, group): g for group, g in enumerate(own.moments if own is not None else ())}
        given = self._shared_out(jobs)
        messages = [
            self._round(own_jobs, moments, mixed, outputs, held) if own_jobs else None for own_jobs in given
        ]
        del mixed, outputs
        moments.forget_sums()
        results = self.team.step(messages)
        return {
            job: rows
            for own_jobs, own_rows in zip(given, results, strict=True)
            for job, rows in zip(own_jobs, own_rows or (), strict=True)
        }

    def _round(
        self,
        jobs: Sequence[Job],
        moments: InputMoments,
        mixed: Mapping[str, Floats],
        outputs: Mapping[tuple[str, int], Floats],
        held: Mapping[str, Floats],
    ) -> Round:
        """What a place has to know for its jobs, and no more."""
        wanted = {job.matrix for job in jobs if reason_of(self.steps[job.name], moments, job.matrix) is None}
        summed, sums = sorted(wanted), moments.sums
        if len(summed) < len(sums):  # else they are not copied: there may be nothing larger in memory
            sums = sums[summed]
        names, groups_of = {job.name for job in jobs}, {(job.name, job.group) for job in jobs}
        return Round(
            jobs,
            replace(moments, sums=sums),
            summed,
            {name: own for name, own in mixed.items() if name in names},
            {group: own for group, own in outputs.items() if group in groups_of},
            {name: x for name, x in held.items() if name in names},
            self.judge is not None,
        )

    def _shared_out(self, jobs: Sequence[Job]) -> list[list[Job]]:
        """The jobs of each place: the largest ones first, each to the one that has least to do."""
        given: list[list[Job]] = [[] for _ in range(self.team.size)]
        load = [0] * self.team.size
        sizes = {name: self.steps[name].source.columns for name in {job.name for job in jobs}}
        for job in sorted(jobs, key=lambda job: -self._rows_of(job) * sizes[job.name]):
            place = load.index(min(load))
            load[place] += self._rows_of(job) * sizes[job.name]
            given[place].append(job)
        order = {job: number for number, job in enumerate(jobs)}
        return [sorted(own, key=order.__getitem__) for own in given]

    def _rows_of(self, job: Job) -> int:
        span = groups(self.steps[job.name].matrix_rows)[job.group]
        return int(span.stop - span.start)

    def _report(self, name: str, jobs: Sequence[Job], found: Mapping[Job, RoundedRows]) -> None:
        """Tell of the matrices of a weight."""
        matrices = dict.fromkeys(job.matrix for job in jobs if job.name == name)
        for matrix in matrices:
            label = name if len(matrices) == 1 else f"{name}[{matrix}]"
            parts = [found[job] for job in jobs if (job.name, job.matrix) == (name, matrix)]
            costs = [part.cost for part in parts if part.cost is not None]
            if parts[0].reason is not None:
                self.report.nearest[label] = parts[0].reason
            elif not costs:
                self.report.nearest[label] = "feedback does no better on windows held out"
            else:
                nearest, cost = np.sum(costs, axis=0).tolist()
                self.report.costs.append(MatrixCost(label, nearest, cost))

    def _is_rounded(self, name: str) -> bool:
        return is_rounded(self.steps.get(name))
