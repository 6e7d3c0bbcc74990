"""Models read a text beside the fine-tune at full precision, which is what each is measured against."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from loragraft.errors import LoragraftError
from loragraft.evaluate.divergence import Divergence, DivergenceMeter, kl, same_top
from loragraft.inference.measurement import Measurement, Scorer, Text, Window
from loragraft.inference.model import Model, load
from loragraft.inference.perplexity import Doubles, Meter, Perplexity, log_softmax, losses
from loragraft.inference.spreading import each_window
from loragraft.opening import AdapterArguments
from loragraft.progress import SILENT, Progress
from loragraft.system.workers import Workers


@dataclass(frozen=True, slots=True)
class Reading:
    """What a model made of the text. `kl`: the divergence from the fine-tune of every scored token, in nats, float64
    [windows, tokens]."""

    perplexity: Perplexity
    divergence: Divergence
    kl: Doubles


def read_beside(
    full: Scorer, others: Mapping[str, Scorer], text: Text, progress: Progress = SILENT
) -> tuple[Perplexity, dict[str, Reading]]:
    """The perplexity of `full`, and how each of `others` reads the same windows.

    All read one window before the next is read, so that nothing but one window's logits is kept. Raises LoragraftError
    for a text shorter than two windows.
    """
    meters = _Meters(others)
    for window in text:
        meters.add(_read(full, others, window, progress))
    return meters.results()


def spread_beside(
    full: Opening,
    others: Mapping[str, Opening],
    text: Text,
    how: Measurement,
    workers: Workers,
    progress: Progress = SILENT,
) -> tuple[Perplexity, dict[str, Reading]]:
    """The same by `workers`, who open the models themselves."""
    meters = _Meters(others)

    def take(window: _Window) -> None:
        meters.add(window)
        progress.advance(1 + len(others))

    there = partial(_opened, full, dict(others))
    each_window(text, partial(there, how), there, take, how, workers=workers, progress=progress)
    return meters.results()


@dataclass(frozen=True, slots=True)
class Opening:
    """How to load a model: its path, the adapters at run time, and what else `load` is told, but for threads."""

    path: str
    adapters: AdapterArguments = ()
    running: Mapping[str, Any] = field(default_factory=dict)

    def load(self, threads: int | None = None) -> Model:
        own = {} if threads is None else {"threads": threads}
        return load(self.path, self.adapters, **{**self.running, **own})


@dataclass(frozen=True, slots=True)
class _Window:
    """Of one window: the losses of the fine-tune; and by model its losses, its divergences, and on how many tokens it
    agrees."""

    losses: Doubles
    others: dict[str, tuple[Doubles, Doubles, int]]


def _read(full: Scorer, others: Mapping[str, Scorer], window: Window, progress: Progress) -> _Window:
    reference = log_softmax(window.read_by(full))
    progress.advance(1)
    read = {}
    for name, model in others.items():
        predicted = log_softmax(window.read_by(model))
        own = losses(predicted, window.targets)
        read[name] = own, kl(reference, predicted), same_top(reference, predicted)
        progress.advance(1)
    return _Window(losses(reference, window.targets), read)


def _opened(full: Opening, others: Mapping[str, Opening], how: Measurement) -> Callable[[Window], _Window]:
    tuned = full.load(how.threads)
    models = {name: opening.load(how.threads) for name, opening in others.items()}
    return lambda window: _read(tuned, models, window, SILENT)


class _Meters:
    def __init__(self, others: Iterable[str]) -> None:
        self._own = Meter()
        self._others = {name: (Meter(), DivergenceMeter()) for name in others}

    def add(self, window: _Window) -> None:
        self._own.add(window.losses)
        for name, (own, values, same) in window.others.items():
            perplexity, divergence = self._others[name]
            perplexity.add(own)
            divergence.add_window(values, same)

    def results(self) -> tuple[Perplexity, dict[str, Reading]]:
        readings = {
            name: Reading(perplexity.result(), divergence.result(), divergence.by_window())
            for name, (perplexity, divergence) in self._others.items()
        }
        return self._own.result(), readings


def check_vocabulary(base: Model, tuned: Model) -> None:
    """Raises LoragraftError if the adapters of `tuned` gave it another vocabulary than `base` has."""
    sizes = [model.source.tensors["token_embd.weight"].shape[0] for model in (base, tuned)]
    if sizes[0] != sizes[1]:
        raise LoragraftError(
            "adapters",
            "change the vocabulary, so the base model cannot read the same text",
            found=f"{sizes[1]} tokens",
            expected=f"the {sizes[0]} of {base.path.name}",
            hint="merge, and measure the merged files with `loragraft perplexity`",
        )
