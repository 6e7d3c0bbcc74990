"""A text to measure models on, and how they read it: the same words for every verb that measures, and the command line.

The text is one sequence of tokens (with BOS before it if the model wants one), cut into windows; what is left over is
dropped. Each window is read on its own, with its first token replaced by BOS if the model wants one. Only predictions
made in its second half count, so that each has at least half a window behind it: position `context // 2` predicts the
first scored token. (tools/perplexity/perplexity.cpp of llama.cpp)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from loragraft.arrays import Floats, Ids
from loragraft.errors import LoragraftError, TextError
from loragraft.progress import SILENT, Progress
from loragraft.units import count_text, plural

if TYPE_CHECKING:
    from loragraft.inference.tokenizer import Tokenizer

BackendName = Literal["native", "reference"]
Activations = Literal["auto", "f32", "q8", "nvfp4"]

DEFAULT_CONTEXT = 512


@dataclass(frozen=True)
class Measurement:
    """`text`, read in windows of `context` tokens, the first `windows` of them; by models that `backend`, `device`,
    `threads` and `activations` run, as for `load`. None: the default of the verb that measures."""

    text: str
    _: KW_ONLY
    context: int | None = None
    windows: int | None = None
    backend: BackendName | None = None
    device: str | None = None
    threads: int | None = None
    activations: Activations | None = None

    @property
    def running(self) -> dict[str, Any]:
        """How models are run, as arguments of `load`."""
        given = {
            "backend": self.backend,
            "device": self.device,
            "threads": self.threads,
            "activations": self.activations,
        }
        return {name: value for name, value in given.items() if value is not None}

    def only_on(self, backend: BackendName, verb: str) -> None:
        """Raises LoragraftError if another backend is asked for than the one that `verb` uses."""
        if self.backend not in (None, backend):
            raise LoragraftError("backend", f"is not for {verb}", found=self.backend, expected=backend)
        if self.device not in (None, "cpu"):
            raise LoragraftError("device", f"is not for {verb}", found=self.device, expected="cpu")

    def read_by(self, tokenizer: Tokenizer, trained: int | None, progress: Progress = SILENT) -> Text:
        """The windows of the text, for a model with this tokenizer. A note says so if they are longer than the context
        that it was `trained` for. Raises as `Text`."""
        context = DEFAULT_CONTEXT if self.context is None else self.context
        bos = tokenizer.bos if tokenizer.add_bos else None
        text = Text(tokenizer.encode(self.text), context, bos, self.windows)
        if trained is not None and context > trained:
            progress.note(
                f"windows of {plural(context, 'token')} are longer than the {count_text(trained)} that the model was "
                "trained for: expect it to do worse in them"
            )
        return text


def measurement(
    given: str | Measurement, *, context: int = DEFAULT_CONTEXT, windows: int | None = None
) -> Measurement:
    """`given`, or what is meant by a text alone, with a verb's own `context` and `windows` where none are named."""
    how = given if isinstance(given, Measurement) else Measurement(given)
    return replace(
        how,
        context=context if how.context is None else how.context,
        windows=windows if how.windows is None else how.windows,
    )


class Scorer(Protocol):
    """Anything that gives logits for a fresh sequence (`loragraft.inference.model.Model`)."""

    def logits(self, ids: Ids, *, first: int = 0) -> Floats:
        """float32 [len(ids) - first, vocab]: of the tokens from `first` on."""


@dataclass(frozen=True, slots=True)
class Window:
    """`ids` int32 [context] is what the model reads; `logits[scored]` predict `targets`."""

    ids: Ids
    targets: Ids
    scored: slice

    def read_by(self, model: Scorer) -> Floats:
        """The logits [n, vocab] that predict the targets [n]."""
        return model.logits(self.ids, first=self.scored.start)[: len(self.targets)]


@dataclass(frozen=True, slots=True)
class Text:
    """Tokens int32 [n], cut into windows of `context`, each starting with `bos` if that is not None; the first
    `windows` of them. Iterating gives them.

    Raises TextError for tokens of less than two windows, LoragraftError for a `context` under 4 or `windows` under 1.
    """

    ids: Ids
    context: int
    bos: int | None
    windows: int | None = None

    def __post_init__(self) -> None:
        if self.context < 4:
            raise LoragraftError(
                "context", "too small to score half of it", found=self.context, expected="4 or more"
            )
        if len(self.ids) < 2 * self.context:
            raise TextError(
                "text",
                "too short to measure on",
                found=plural(len(self.ids), "token"),
                expected=f"{count_text(2 * self.context)} or more, two windows of {count_text(self.context)}",
                hint="take a longer text or a smaller context",
            )
        if self.windows is not None and self.windows < 1:
            raise LoragraftError(
                "windows", "none is left to measure", found=self.windows, expected="1 or more"
            )

    def __len__(self) -> int:
        """How many windows there are."""
        whole = len(self.ids) // self.context
        return whole if self.windows is None else min(whole, self.windows)

    def __iter__(self) -> Iterator[Window]:
        first = self.context // 2
        for start in range(0, len(self) * self.context, self.context):
            window = self.ids[start : start + self.context].copy()
            targets = window[first + 1 :].copy()
            if self.bos is not None:
                window[0] = self.bos
            yield Window(window, targets, slice(first, self.context - 1))
