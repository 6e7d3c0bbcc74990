"""`budget`: which type each tensor gets, so that a model of a given size keeps the most of the fine-tune.

What rounding a tensor costs is the KL divergence that it causes, alone, from the fine-tune at full precision. That is
measured once per tensor, on a text, as one rough type; for other types it is scaled by the tensor's own rounding error,
to which it is proportional. The costs of all tensors nearly add up, so choosing is a knapsack problem
(`loragraft.quants.allocation`). What was chosen is then made and measured, beside the mixes of its size, on a text that
it was not chosen on. docs/bits.md says how well all this holds, and what is gained.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from loragraft.arrays import Doubles
from loragraft.errors import LoragraftError, QuantizeError, TextError
from loragraft.evaluate.deployment import Deployment
from loragraft.evaluate.picture import picture
from loragraft.evaluate.reading import Opening, Reader, Reading, check_vocabulary, read_by
from loragraft.evaluate.tensor_costs import (
    TensorCost,
    calibrated_tensor_costs,
    possible_types,
    size_as,
    tensor_costs,
)
from loragraft.evaluate.uncertainty import SIGNIFICANT, Estimate
from loragraft.evaluate.verdict import budget_verdict, percent_text
from loragraft.inference.measurement import Measurement, Text, measurement
from loragraft.inference.tokenizer import Tokenizer
from loragraft.opening import AdapterArguments, open_model
from loragraft.progress import SILENT, Progress
from loragraft.quants.allocation import Choice, allocate, allocate_cost
from loragraft.quants.filetypes import file_type
from loragraft.quants.roles import layer_of
from loragraft.quants.types import BY_NAME, QuantType
from loragraft.streaming.options import QuantizeOptions
from loragraft.streaming.plan import WritePlan, plan_quantize
from loragraft.streaming.steps import Step
from loragraft.system.mapped import intact
from loragraft.system.threads import thread_count
from loragraft.system.workers import Workers
from loragraft.verbs.merge import merge
from loragraft.verbs.quantize import quantize

#: The best of their sizes without an importance matrix, none much more than a bit from the next.
TYPES = ("Q2_K", "Q3_K", "IQ4_XS", "Q4_K", "Q5_K", "Q6_K", "Q8_0")
#: The mixes to beat; those that need an importance matrix count where there is one.
MIXES = (
    *("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "Q2_K_S", "Q2_K", "IQ3_XXS", "IQ3_XS", "Q3_K_S", "IQ3_S"),
    *("IQ3_M", "Q3_K_M", "Q3_K_L", "IQ4_XS", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K", "Q8_0"),
)
CONTEXT, WINDOWS, VALID_WINDOWS = 256, 8, 32
#: How often a size is tried that may keep what is to be kept.
TRIES = 4


@dataclass(frozen=True, slots=True)
class TensorBudget:
    """One tensor. `cost`: the KL divergence, in nats, that its rounding to `type` is expected to cause; `probe`: that
    which it was measured to cause as `probe_type`; `mix_type`: what the mix makes of it."""

    name: str
    shape: tuple[int, ...]
    type: str
    size: int
    cost: float
    probe_type: str
    probe: Estimate
    mix_type: str

    @property
    def bits_per_weight(self) -> float:
        return BY_NAME[self.type].bits_per_weight


@dataclass(frozen=True, slots=True)
class Budget:
    """`size`: what all tensors may take, in bytes; `mix`: the mix that most nearly takes as much; `expected`: the KL
    divergence that the costs add up to, to be held against what was measured of `chosen`; `mixes`: `mix`, and the next
    larger one if there is one."""

    size: int
    mix: str
    tensors: list[TensorBudget]
    expected: float
    chosen: Deployment
    mixes: list[Deployment]
    verdict: str

    def tensor_types(self) -> str:
        """A file for `--tensor-type-file`: REGEX=TYPE, one a line."""
        return "".join(f"{_pattern(row.name)}={row.type.lower()}\n" for row in self.tensors)

    def as_dict(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return asdict(self)


@intact
def budget(
    base: str | PathLike[str],
    adapters: AdapterArguments,
    text: str | Measurement,
    *,
    size: int | None = None,
    bits_per_weight: float | None = None,
    keep: float | None = None,
    like: str = "Q4_K_M",
    types: Sequence[str] = TYPES,
    valid: str | None = None,
    imatrix: str | PathLike[str] | None = None,
    calibrate: Iterable[str | PathLike[str]] = (),
    calibrate_windows: int = 40,
    valid_windows: int = VALID_WINDOWS,
    work_dir: str | PathLike[str] | None = None,
    workers: Workers | None = None,
    progress: Progress = SILENT,
) -> Budget:
    """Choose one of `types` for every tensor of `base` with `adapters` (paths, or pairs of path and strength) merged,
    so that all tensors together take at most `size` bytes, or `bits_per_weight`; or as little as still keeps the share
    `keep` of the fine-tune; or, if nothing is said, as much as the mix `like` takes.

    Tensors are measured on `text`, on its first 8 windows of 256 tokens each if nothing else is said; the result on the
    first `valid_windows` windows of `valid`, or of what is left of `text`. `imatrix`: an importance matrix to quantize
    with. `calibrate`: files of text to round on with error feedback, as `merge` does; then what types cost comes from
    gradients on these, not from measuring tensor by tensor, and the mixes are rounded in the same way. The files that
    have to be made go to a temporary folder in `work_dir`: one F16 model, and one quantized model at a time. `workers`
    read the windows; the result is the same for any. Raises LoragraftError.
    """
    if sum(wanted is not None for wanted in (size, bits_per_weight, keep)) > 1:
        raise LoragraftError("size", "given twice", expected="bytes, or bits per weight, or a share to keep")
    if keep is not None and not (adapters and 0 < keep < 1):
        raise LoragraftError(
            "keep", "not a share of a fine-tune", found=keep, expected="between 0 and 1, and an adapter"
        )
    kinds = [_candidate(name) for name in types]
    options = QuantizeOptions(
        allow_requantize=True, imatrix=imatrix, calibrate=calibrate, calibrate_windows=calibrate_windows
    )
    how, unmerged = measurement(text, context=CONTEXT, windows=WINDOWS), open_model(base, dequantize=True)
    how.only_on("native", "budget")
    threads = thread_count(how.threads)
    how.read_by(
        Tokenizer(unmerged.metadata, unmerged.path), unmerged.context_length, progress
    )  # raises early
    with tempfile.TemporaryDirectory(prefix="loragraft-", dir=work_dir) as place:
        path = Path(place) / "full.gguf"
        plain = replace(options, calibrate=())
        merge(
            base,
            adapters,
            path,
            type="F16",
            options=plain,
            dequantize=True,
            threads=how.threads,
            workers=workers,
            progress=progress,
        )
        full = _reader(path, how, workers)
        learn, judge = _texts(full, how, valid, valid_windows)
        without = _reader(base, how, workers) if adapters else None
        if without is not None:
            check_vocabulary(without, full)
        merged = partial(merge, base, adapters, dequantize=True) if adapters and options.calibrate else None
        bench = _Bench(full, without, judge, options, Path(place), how, threads, progress, workers, merged)
        mixes = bench.mix_sizes()
        if bits_per_weight is not None:
            size = bench.size_of(bits_per_weight)
        if size is None and keep is None:
            own = file_type(like).name
            size = bench.mix_size(own, Path(base))
            mixes = {own: size} | {name: bytes_ for name, bytes_ in mixes.items() if bytes_ != size}
        found = bench.spend(kinds, learn, size) if keep is None else bench.keep(kinds, learn, keep)
        size = found.bytes if size is None else size
        mix = _largest_within(mixes, size)
        larger = sorted(
            (name for name in mixes if mixes[name] > size and name != mix), key=lambda name: mixes[name]
        )
        chosen, kl = found.judged or bench.judged("chosen", found.types)
        others = [bench.judged(name, {}, name) for name in (mix, *larger[:1])]
        verdict = budget_verdict(chosen, kl, others)
        if keep is not None and chosen.kept is not None:
            surely = "." if chosen.kept.at_least(keep) else f": not surely the {100 * keep:.4g} % wanted."
            verdict = f"{found.bytes / 1e6:.2f} MB keep {percent_text(chosen.kept)} of the fine-tune{surely} {verdict}"
        return Budget(
            size,
            mix,
            found.rows(bench.plan(mix)),
            found.expected,
            chosen,
            [row for row, _ in others],
            verdict,
        )


def _candidate(name: str) -> QuantType:
    kind = BY_NAME.get(name.upper())
    if kind is None or not kind.is_quantized or kind.name == "NVFP4":
        fits = ", ".join(kind.name for kind in BY_NAME.values() if kind.is_quantized and kind.name != "NVFP4")
        raise LoragraftError(name, "no type to choose from", expected=f"some of {fits}")
    return kind


def _reader(path: str | PathLike[str], how: Measurement, workers: Workers | None) -> Reader:
    reader = Reader(Opening(os.fspath(path), (), how.running))
    if workers is None:
        _ = reader.model  # so that what cannot be run is told of before much else is done
    return reader


def _texts(full: Reader, how: Measurement, valid: str | None, valid_windows: int) -> tuple[Text, Text]:
    """What to measure the tensors on, and what to judge the result on."""
    learn = how.read_by(full.tokenizer, None)
    if valid is not None:
        return learn, replace(how, text=valid, windows=valid_windows).read_by(full.tokenizer, None)
    rest = learn.ids[len(learn) * learn.context :]
    if len(rest) < 2 * learn.context or valid_windows < 2:
        wanted = (how.windows or len(learn)) + 2
        raise TextError(
            "text",
            "too short to measure tensors on and to judge the result on",
            found=f"{len(learn.ids)} tokens",
            expected=f"{wanted * learn.context} or more, for {wanted} windows of {learn.context}",
            hint="use fewer windows, or give another text to judge on",
        )
    return learn, replace(learn, ids=rest, windows=valid_windows)


def _largest_within(sizes: Mapping[str, int], size: int) -> str:
    """The largest mix of at most `size` bytes; the smallest, if all are larger."""
    return max(
        sizes, key=lambda name: (sizes[name] <= size, sizes[name] if sizes[name] <= size else -sizes[name])
    )


def _pattern(name: str) -> str:
    return f"^{re.escape(name)}$"


@dataclass(frozen=True)
class _Found:
    """What was chosen. `bytes`: of all tensors, those too that are not quantized."""

    costs: Mapping[str, TensorCost]
    types: Mapping[str, Choice]
    bytes: int
    judged: tuple[Deployment, Doubles] | None = None

    @property
    def expected(self) -> float:
        return sum(choice.cost for choice in self.types.values())

    def rows(self, mix: WritePlan) -> list[TensorBudget]:
        return [
            TensorBudget(
                name=step.name,
                shape=step.source.shape,
                type=self.types[step.name].type.name,
                size=self.types[step.name].size,
                cost=self.types[step.name].cost,
                probe_type=self.costs[step.name].probe_type.name,
                probe=self.costs[step.name].probe,
                mix_type=step.type.name,
            )
            for step in mix.steps
            if step.name in self.types
        ]


@dataclass
class _Bench:
    """The fine-tune at full precision, the base without it, and the text to judge on what is made of them."""

    full: Reader
    base: Reader | None
    text: Text
    options: QuantizeOptions
    folder: Path
    how: Measurement
    threads: int
    progress: Progress
    workers: Workers | None
    merged: Callable[..., object] | None
    """Merges and quantizes: calibration wants to know what adapters change. None if `full` need only be quantized."""

    def plan(self, mix: str) -> WritePlan:
        return plan_quantize(self.full.source, file_type(mix), self.options)

    def mix_sizes(self) -> dict[str, int]:
        """Bytes of the model as each of `MIXES` that can be made without more importance than there is."""
        plans = {name: self.plan(name) for name in MIXES}
        return {
            name: sum(step.nbytes for step in plan.steps)
            for name, plan in plans.items()
            if not plan.lacking_importance
        }

    def mix_size(self, mix: str, subject: Path) -> int:
        """Raises `QuantizeError` if it lacks importance, or quantizes nothing."""
        plan = self.plan(mix)
        plan.require_importance(subject)
        if not any(step.type.is_quantized for step in plan.steps):
            raise QuantizeError(mix, "quantizes no tensor of this model", hint="take a mix such as Q4_K_M")
        return sum(step.nbytes for step in plan.steps)

    def size_of(self, bits_per_weight: float) -> int:
        weights = sum(tensor.n_rows * tensor.columns for tensor in self.full.source.tensors.values())
        return int(weights * bits_per_weight / 8)

    # ---- choosing ----

    def spend(self, kinds: Sequence[QuantType], text: Text, size: int | None) -> _Found:
        """The types that cost least in `size` bytes. Raises LoragraftError, before measuring, if none fit."""
        assert size is not None
        steps, fixed = self._steps()
        types = possible_types(steps, kinds)
        least = fixed + sum(min(size_as(step, kind) for kind in types[step.name]) for step in steps)
        if size < least:
            raise LoragraftError(
                "size", "too small for these types", found=f"{size} bytes", expected=f"at least {least}"
            )
        costs = self._costs(steps, types, text)
        chosen = allocate({name: cost.choices for name, cost in costs.items()}, size - fixed)
        return _Found(costs, chosen, fixed + sum(choice.size for choice in chosen.values()))

    def keep(self, kinds: Sequence[QuantType], text: Text, wanted: float) -> _Found:
        """The smallest types that surely keep the share `wanted`; or what came close, if the last try does not.

        What is lost is more than the costs add up to. By how much is seen when the first choice is judged, and left
        room for in the next.
        """
        steps, fixed = self._steps()
        costs = self._costs(steps, possible_types(steps, kinds), text)
        choices = {name: cost.choices for name, cost in costs.items()}
        whole = float(self._divergences(text).mean())
        unforeseen = 0.0
        for _ in range(TRIES):
            chosen = allocate_cost(choices, (1 - wanted - unforeseen) * whole)
            judged = self.judged("chosen", chosen)
            found = _Found(costs, chosen, fixed + sum(choice.size for choice in chosen.values()), judged)
            kept = judged[0].kept
            if kept is None or kept.at_least(wanted):
                break
            unforeseen = 1 - kept.value + SIGNIFICANT * kept.error - found.expected / whole
        return found

    def _steps(self) -> tuple[list[Step], int]:
        """The tensors that are quantized, and the bytes of the others: the same for all mixes."""
        steps = self.plan("Q4_K_M").steps
        return [step for step in steps if step.type.is_quantized], sum(
            step.nbytes for step in steps if not step.type.is_quantized
        )

    def _costs(
        self, steps: Sequence[Step], types: Mapping[str, Sequence[QuantType]], text: Text
    ) -> dict[str, TensorCost]:
        if self.options.calibrate:
            return calibrated_tensor_costs(
                self.full.source,
                steps,
                types,
                options=self.options,
                threads=self.threads,
                progress=self.progress,
            )
        return tensor_costs(
            self.full,
            steps,
            types,
            text,
            options=self.options,
            folder=self.folder,
            how=self.how,
            workers=self.workers,
            progress=self.progress,
        )

    # ---- judging ----

    def judged(
        self, label: str, types: Mapping[str, Choice], mix: str = "Q4_K_M"
    ) -> tuple[Deployment, Doubles]:
        """The model as `mix`, but for `types`; and its divergences [windows, tokens]."""
        patterns = tuple((_pattern(name), choice.type) for name, choice in types.items())
        path = self.folder / "judged.gguf"
        write = self.merged or partial(quantize, self.full.opening.path)
        write(
            path,
            type=mix,
            options=replace(self.options, tensor_types=patterns),
            threads=self.how.threads,
            workers=self.workers,
            progress=self.progress,
        )
        reader = _reader(path, self.how, self.workers)
        self.progress.start(f"Judging {label}", 2 * len(self.text))
        reading, size = self._read(reader, self.text), reader.size
        path.unlink()
        return Deployment.of(label, size, reading, self._whole), reading.kl

    @cached_property
    def _whole(self) -> Doubles | None:
        """The base's divergences on the text to judge on, if there is a fine-tune."""
        return None if self.base is None else self._divergences(self.text)

    def _divergences(self, text: Text) -> Doubles:
        assert self.base is not None
        self.progress.start("Judging the base", 2 * len(text))
        return self._read(self.base, text).kl

    def _read(self, reader: Reader, text: Text) -> Reading:
        return read_by(self.full, {"": reader}, text, self.how, self.workers, self.progress)[1][""]


def save_picture(result: Budget, path: Path) -> None:
    """Where the bits go: bits per weight by layer and role, as PNG or SVG. Needs matplotlib."""
    layers = sorted({layer_of(row.name) for row in result.tensors})
    roles = list(
        dict.fromkeys(_role(row.name) for row in sorted(result.tensors, key=lambda row: layer_of(row.name)))
    )
    bits = np.full((len(roles), len(layers)), np.nan)
    for row in result.tensors:
        bits[roles.index(_role(row.name)), layers.index(layer_of(row.name))] = row.bits_per_weight
    with picture(path, 2.5 + 0.45 * len(layers), 1.5 + 0.3 * len(roles)) as axes:
        shown = axes.imshow(bits, aspect="auto", cmap="viridis", vmin=2, vmax=8.5)
        axes.set_xticks(
            range(len(layers)), ["-" if layer < 0 else str(layer) for layer in layers], fontsize=8
        )
        axes.set_yticks(range(len(roles)), roles, fontsize=8)
        axes.set_xlabel("layer")
        for row in result.tensors:
            place = layers.index(layer_of(row.name)), roles.index(_role(row.name))
            dark = row.bits_per_weight < 5.5
            axes.annotate(
                row.type, place, ha="center", va="center", fontsize=5, color="white" if dark else "black"
            )
        axes.figure.colorbar(shown, ax=axes, label="bits per weight")


def _role(name: str) -> str:
    return re.sub(r"^blk\.\d+\.", "", name).removesuffix(".weight")
