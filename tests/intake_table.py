"""What the tests of intake show: docs/intake.md is made of this."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

_Test = TypeVar("_Test", bound=Callable[..., Any])

#: Public reports of people who had an adapter and a base, by number, and the class that each stands for; then classes
#: that nobody had reported.
CLASSES = {
    "01": (
        "a chat template or tokenizer settings beside an adapter, without tokenizer.json",
        "what is saved beside an adapter counts",
    ),
    "02": ("names of a multimodal model's tensors", "wrappers around a language model"),
    "03": ("an mlx-lm adapter", "adapters of other programs"),
    "04": ("a checkpoint that MLX quantized", "quantizations that GGUF cannot carry"),
    "05": ("an importance matrix of another model", "entries and tensors that do not meet"),
    "06": ("an adapter that lies deeper", "folders within folders"),
    "07": ("`quantization_config` in a merged model", "settings that the tensors contradict"),
    "08": ("an adapter beside the base's config.json", "two things in one folder"),
    "09": ("norms in a GGUF adapter", "whole tensors beside pairs"),
    "10": ("an untrained or empty adapter", "what changes nothing"),
    "11": (
        "`modules_to_save` that match nothing; a classifier",
        "configurations broader than the model",
    ),
    "13": ("a PEFT adapter onto a GGUF of another architecture", "architectures without a graph here"),
    "15": ("more tokens than rows", "a tokenizer that is not the embedding's"),
    "in place": ("an output that lands in the folder that is read", "what counts as an input"),
    "pickles": ("pickles", "weights that could run code"),
    "shards": ("shards", "weights in several files"),
}


@dataclass(frozen=True, slots=True)
class Shown:
    """What one test tries of a class, and what comes of it."""

    case: str
    members: str
    outcome: str


SHOWN: list[Shown] = []


def shows(case: str, members: str, outcome: str) -> Callable[[_Test], _Test]:
    """Marks a test: it tries these members of the class `case`."""
    assert case in CLASSES, case

    def mark(test: _Test) -> _Test:
        SHOWN.append(Shown(case, members, outcome))
        return test

    return mark
