"""What the scheduler knows of a request while it works on it."""

from __future__ import annotations

from dataclasses import dataclass, field

from loragraft.inference.sampling import Sampler
from loragraft.inference.scheduler.embedding import LONGEST, Pooled
from loragraft.inference.scheduler.lookup import Lookup
from loragraft.inference.scheduler.prefixes import AdapterKey
from loragraft.inference.scheduler.request import Constraint, Ran, Request, Scored
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
    next: int | None = None
    """The token to feed; None before the first and after the last."""
    lookup: Lookup | None = None
    valid: int = 0
    """How many tokens of the sequence are what was said; what is behind them are wrong guesses."""


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
    label: str = ""
    """The adapters' names, for the telemetry."""

    def __post_init__(self) -> None:
        self.adapters = tuple(name for name, _ in self.request.adapters)
        self.label = "+".join(self.adapters)

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
