"""Models read a text beside the fine-tune at full precision, which is what each is measured against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from loragraft.errors import LoragraftError
from loragraft.evaluate.divergence import Divergence, DivergenceMeter
from loragraft.inference.measurement import Scorer, Text
from loragraft.inference.model import Model
from loragraft.inference.perplexity import Doubles, Meter, Perplexity, log_softmax, losses
from loragraft.progress import SILENT, Progress


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
    own = Meter()
    perplexities = {name: Meter() for name in others}
    divergences = {name: DivergenceMeter() for name in others}
    for window in text:
        reference = log_softmax(window.read_by(full))
        own.add(losses(reference, window.targets))
        progress.advance(1)
        for name, model in others.items():
            predicted = log_softmax(window.read_by(model))
            perplexities[name].add(losses(predicted, window.targets))
            divergences[name].add(reference, predicted)
            progress.advance(1)
    readings = {
        name: Reading(perplexities[name].result(), divergences[name].result(), divergences[name].by_window())
        for name in others
    }
    return own.result(), readings


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
