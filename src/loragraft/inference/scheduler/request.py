"""What is asked of the scheduler, and what it answers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from loragraft.arrays import Floats, Ids
from loragraft.errors import ContextError, LoragraftError
from loragraft.inference.sampling import Sampling

Pooling = Literal["mean", "last"]


class Constraint(Protocol):
    """What the next token may be; it follows the tokens as they are chosen."""

    def mask(self, logits: Floats) -> None:
        """Set the logits [vocab] of forbidden tokens to minus infinity, in place."""

    def accept(self, token: int) -> bool:
        """Take note of the token chosen. True once nothing may follow."""


@dataclass(frozen=True)
class Penalties:
    """What is taken from the logits of tokens already made, as OpenAI's API defines it, and what `bias` adds.

    logit[t] -= presence * (count[t] > 0) + frequency * count[t];  logit[t] += bias[t]
    """

    presence: float = 0.0
    frequency: float = 0.0
    bias: Mapping[int, float] = field(default_factory=dict)

    @property
    def active(self) -> bool:
        return bool(self.presence or self.frequency or self.bias)

    def apply(self, logits: Floats, made: Sequence[int]) -> None:
        """Change `logits` [vocab] in place, `made` being the tokens of the reply so far."""
        if made and (self.presence or self.frequency):
            tokens, counts = np.unique(np.asarray(made), return_counts=True)
            logits[tokens] -= np.float32(self.presence) + np.float32(self.frequency) * counts.astype(
                np.float32
            )
        if self.bias:
            tokens, values = self._biases
            logits[tokens] += values

    @cached_property
    def _biases(self) -> tuple[npt.NDArray[np.int64], Floats]:
        count = len(self.bias)
        return np.fromiter(self.bias.keys(), np.int64, count), np.fromiter(
            self.bias.values(), np.float32, count
        )


@dataclass(frozen=True, slots=True)
class Scored:
    """A token of a reply. `logprob`: natural logarithm of its probability under the model itself, before penalties,
    bias, constraint and temperature. `top`: the likeliest tokens at its place, likeliest first."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()

    @classmethod
    def of(cls, token: int, logits: Floats | None, top: int | None) -> Scored:
        """`token` under `logits` [vocab], with the `top` likeliest beside it; None: the token only."""
        if top is None or logits is None:
            return cls(token)
        wide = logits.astype(np.float64)
        wide -= wide.max()
        logprobs = wide - np.log(np.exp(wide).sum())
        best: tuple[tuple[int, float], ...] = ()
        if top:
            chosen = np.argpartition(-logprobs, min(top, len(logprobs) - 1))[:top]
            chosen = chosen[np.argsort(-logprobs[chosen], kind="stable")]
            best = tuple((int(t), float(logprobs[t])) for t in chosen)
        return cls(token, float(logprobs[token]), best)


@dataclass(frozen=True, slots=True)
class Piece:
    """More text of one choice, and the tokens that it came from."""

    choice: int
    text: str
    tokens: tuple[Scored, ...]


FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Finished:
    """A choice is complete: the model ended it or a stop text came ("stop"), or there was no more room ("length").
    `stop_text`: the one that came."""

    choice: int
    reason: FinishReason
    stop_text: str | None = None


@dataclass(frozen=True, slots=True)
class Ran:
    """An adapter that a request ran with: its name, the strength asked for, and what was loaded."""

    name: str
    strength: float
    sha256: str
    scale: float | None
    """The adapter's own scale (alpha/r); None where its modules differ."""
    tensors: int
    changing: int
    """How many of its weights have a delta other than zero."""
    active_from: int | None = None
    """For one that works from its invocation tokens on (aLoRA): the place of the first in the prompt."""


@dataclass(frozen=True, slots=True)
class Started:
    """The request is being worked on, with these adapters. `cached_tokens`: of its prompt, known from others."""

    adapters: tuple[Ran, ...]
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Done:
    """Everything was sent. Counts of tokens, and what ran."""

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    adapters: tuple[Ran, ...]
    queued_seconds: float
    first_token_seconds: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Embedded:
    """The pooled hidden state of a text, float32 [d]."""

    vector: Floats


@dataclass(frozen=True, slots=True)
class Failed:
    """The request ended with an error; other requests go on."""

    error: LoragraftError


Event = Started | Piece | Finished | Embedded | Done | Failed

_numbers = itertools.count(1)


@dataclass(eq=False)
class Request:
    """One prompt, and how to continue it.

    `emit` is called from the scheduler's thread with every event, `Done` or `Failed` being the last; it must not
    block. `adapters`: names and strengths, in the order in which they are added.
    """

    prompt: Ids
    emit: Callable[[Event], None]
    adapters: tuple[tuple[str, float], ...] = ()
    max_tokens: int = 128
    choices: int = 1
    sampling: Sampling = field(default_factory=Sampling)
    penalties: Penalties = field(default_factory=Penalties)
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    """How many likely tokens to report at each place; None: report no probabilities."""
    constraint: Callable[[], Constraint] | None = None
    show_special: bool = False
    timeout: float | None = None
    """Seconds from submission; after them the request fails."""
    embed: Pooling | None = None
    """Instead of continuing the prompt, give its hidden states, pooled."""
    number: int = field(default_factory=lambda: next(_numbers))

    def check(self, context: int, sequences: int) -> None:
        """Raises LoragraftError for a prompt that is empty or leaves no room in the model's `context`, and for more
        choices than can be made at once."""
        if not len(self.prompt):
            raise LoragraftError("prompt", "is empty", hint="this model puts no BOS token before it")
        if len(self.prompt) + (self.embed is None) > context:
            raise ContextError(
                "prompt",
                "longer than the model's context",
                found=f"{len(self.prompt)} tokens",
                expected=f"fewer than {context}",
            )
        if self.choices > sequences:
            raise LoragraftError("n", "too many choices", found=self.choices, expected=f"at most {sequences}")

    @property
    def likeliest_only(self) -> bool:
        """Whether its replies are the likeliest tokens, and nothing is told of others."""
        free = self.constraint is None and self.logprobs is None and not self.penalties.active
        return free and self.embed is None and self.sampling.greedy
