"""A request while the scheduler works on it, and its replies."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from loragraft.adapters.invocation import invoked_at
from loragraft.arrays import Ids
from loragraft.backends.batch import Piece as Rows
from loragraft.errors import AdapterError, LoragraftError
from loragraft.inference.sampling import Sampler
from loragraft.inference.scheduler.embedding import LONGEST, Pooled
from loragraft.inference.scheduler.lookup import Lookup
from loragraft.inference.scheduler.outputs import Likeliest, Output
from loragraft.inference.scheduler.prefixes import AdapterKey, common_prefix
from loragraft.inference.scheduler.request import Constraint, Done, Penalties, Ran, Request, Scored
from loragraft.inference.scheduler.shelf import Lease
from loragraft.inference.scheduler.stopping import StopTexts
from loragraft.inference.tokenizer import TextDecoder


@dataclass(eq=False)
class Choice:
    """One reply under way."""

    number: int
    sequence: int
    sampler: Sampler
    decoder: TextDecoder
    stops: StopTexts
    constraint: Constraint | None
    made: list[int] = field(default_factory=list)
    unsent: list[Scored] = field(default_factory=list)
    begun: bool = False
    """Whether something of it was sent."""
    next: int | None = None
    """The token to feed; None before the first and after the last."""
    lookup: Lookup | None = None
    valid: int = 0
    """How many tokens of the sequence are what was said; what is behind them are wrong guesses."""

    def pick(self, given: Output, penalties: Penalties) -> int:
        """The next token, from what the model gives, under `penalties` and the choice's own constraint.

        Raises LoragraftError if they leave no token.
        """
        if isinstance(given, Likeliest):
            return given.token
        logits = given
        if penalties.active or self.constraint is not None:
            logits = logits.copy()
            penalties.apply(logits, self.made)
            if self.constraint is not None:
                self.constraint.mask(logits)
            if not np.isfinite(logits.max()):
                raise LoragraftError(
                    "logit_bias", "leaves no token that may come next", expected="one, under the grammar"
                )
        return self.sampler.pick(logits)


@dataclass(eq=False)
class Job:
    """A request and how far it is."""

    request: Request
    submitted: float
    lease: Lease | None = None
    admitted: float = 0.0
    first_token: float = 0.0
    cached: int = 0
    read: int = 0
    """Tokens of the prompt whose states are in `sequence`."""
    sequence: int | None = None
    choices: list[Choice] = field(default_factory=list)
    completed: int = 0
    pooled: Pooled | None = None
    cancelled: bool = False
    invoked: int = 0
    """Before this place of the prompt an aLoRA of the request does not work; 0 where all work from the start."""
    ran: tuple[Ran, ...] = ()
    adapters: tuple[str, ...] = ()
    """Their names."""

    def __post_init__(self) -> None:
        self.adapters = tuple(name for name, _ in self.request.adapters)

    def invoke(self) -> tuple[Ran, ...]:
        """Find where an aLoRA of the request begins to work. Raises AdapterError if its tokens are not in the prompt:
        what is asked for is not left out silently."""
        assert self.lease is not None
        places: dict[str, int] = {}
        for name, tokens in self.lease.invocations.items():
            place = invoked_at(self.request.prompt, tokens)
            if place is None:
                raise AdapterError(
                    name,
                    "works only from its invocation tokens on, which the prompt does not hold",
                    expected=f"the tokens {list(tokens)[:16]}",
                )
            places[name] = place
        if len(set(places.values())) > 1:
            raise AdapterError(
                " and ".join(places), "begin to work at different places", found=list(places.values())
            )
        self.invoked = next(iter(places.values()), 0)
        self.ran = tuple(replace(ran, active_from=places.get(ran.name)) for ran in self.lease.ran)
        return self.ran

    def rows(self, tokens: Ids, wants: Literal["all", "last", "none"]) -> Rows:
        """`tokens` of the prompt as rows of a batch, under the adapters that work on them."""
        assert self.lease is not None
        assert self.sequence is not None
        slots = self.lease.early_slots if self.read < self.invoked else self.lease.slots
        return Rows(self.sequence, tokens, slots, wants)

    def next_rows(self, share: int, room: int) -> Rows:
        """The next piece of the prompt: at most `share` and `room` tokens, and none beyond an aLoRA's invocation."""
        left = self.request.prompt[self.read :]
        most = min(share, room, self.invoked - self.read if self.read < self.invoked else len(left))
        tokens = left[:most]
        if self.request.embed is not None:
            return self.rows(tokens, "all")
        return self.rows(tokens, "last" if len(tokens) == len(left) else "none")

    def done(self, now: float) -> Done:
        """The account of the finished request."""
        return Done(
            len(self.request.prompt),
            self.cached,
            sum(len(choice.made) for choice in self.choices),
            self.ran,
            self.admitted - self.submitted,
            self.first_token - self.submitted,
            now - self.submitted,
        )

    @property
    def shared(self) -> tuple[AdapterKey, int]:
        """Under which adapters the first tokens of the prompt are read, and how many of them are known."""
        assert self.lease is not None
        if self.invoked:
            return self.lease.early_key, min(self.read, self.invoked)
        return self.lease.key, self.read

    @property
    def is_text(self) -> bool:
        """Whether it is to be embedded, in one pass."""
        return self.request.embed is not None and not self.invoked and len(self.request.prompt) <= LONGEST

    @property
    def deadline(self) -> float:
        return float("inf") if self.request.timeout is None else self.submitted + self.request.timeout


def wanted_rows(rows: Rows) -> int:
    """How many rows of logits are wanted of it."""
    return {"none": 0, "last": 1}.get(str(rows.wants), len(rows.tokens))


def being_read(jobs: Iterable[Job], key: AdapterKey, prompt: Ids) -> Iterator[tuple[int, int]]:
    """Prompts of `jobs` that are being read now and begin like `prompt`, under the adapters `key`: (sequence, shared
    length)."""
    for other in jobs:
        if other.lease is not None and other.sequence is not None and other.shared[0] == key:
            shared = common_prefix(other.request.prompt[: other.shared[1]], prompt)
            if shared:
                yield other.sequence, shared
