"""Models read a text beside the fine-tune at full precision, which is what each is measured against."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

from loragraft.arrays import Doubles
from loragraft.errors import LoragraftError
from loragraft.evaluate.divergence import Divergence, DivergenceMeter, kl, same_top
from loragraft.formats.source import ModelSource
from loragraft.inference.measurement import Measurement, Scorer, Text, Window
from loragraft.inference.model import Model, load
from loragraft.inference.perplexity import Meter, Perplexity, log_softmax, losses
from loragraft.inference.spreading import each_window
from loragraft.inference.tokenizer import Tokenizer
from loragraft.opening import AdapterArguments, load_adapters, open_model
from loragraft.progress import SILENT, Progress
from loragraft.system.workers import Workers


@dataclass(frozen=True, slots=True)
class Reading:
    """What a model made of the text. `kl`: the divergence from the fine-tune of every scored token, in nats, float64
    [windows, tokens]."""

    perplexity: Perplexity
    divergence: Divergence
    kl: Doubles


def read_by(
    full: Reader,
    others: Mapping[str, Reader],
    text: Text,
    how: Measurement,
    workers: Workers | None = None,
    progress: Progress = SILENT,
) -> tuple[Perplexity, dict[str, Reading]]:
    """The perplexity of `full`, and how each of `others` reads the same windows; here, or by `workers`, with the same
    result. Raises as `read_beside`."""
    if workers is None:
        return read_beside(
            full.model, {name: reader.model for name, reader in others.items()}, text, progress
        )
    openings = {name: reader.opening for name, reader in others.items()}
    return spread_beside(full.opening, openings, text, how, workers, progress)


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


@dataclass(frozen=True)
class Reader:
    """A model that is to read a text. It is loaded when this process first needs it; where workers read, never."""

    opening: Opening

    @cached_property
    def model(self) -> Model:
        return self.opening.load()

    @property
    def source(self) -> ModelSource:
        """Its metadata and tensors, with what its adapters change as a whole."""
        return self._opened[0]

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return Tokenizer(self.source.metadata, self.source.path)

    @property
    def size(self) -> int:
        """Bytes of the weights, and of the adapters as float32."""
        return self._opened[1]

    @cached_property
    def _opened(self) -> tuple[ModelSource, int]:
        if "model" in self.__dict__:
            return self.model.source, self.model.size
        base = open_model(self.opening.path)
        source, adapters = load_adapters(self.opening.adapters, base, invoked=True)
        weights = sum(tensor.n_rows * tensor.row_bytes for tensor in source.tensors.values())
        return source, weights + sum(adapter.nbytes for adapter, _ in adapters)


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


def check_vocabulary(base: Reader, tuned: Reader) -> None:
    """Raises LoragraftError if the adapters of `tuned` gave it another vocabulary than `base` has."""
    sizes = [reader.source.tensors["token_embd.weight"].shape[0] for reader in (base, tuned)]
    if sizes[0] != sizes[1]:
        raise LoragraftError(
            "adapters",
            "change the vocabulary, so the base model cannot read the same text",
            found=f"{sizes[1]} tokens",
            expected=f"the {sizes[0]} of {base.source.path.name}",
            hint="merge, and measure the merged files with `loragraft perplexity`",
        )
