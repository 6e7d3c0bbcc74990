"""What every endpoint needs: the model, the scheduler, and which adapters a request means."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path

from loragraft.inference.model import Model
from loragraft.inference.scheduler.loop import Scheduler
from loragraft.inference.scheduler.shelf import Listed, Shelf
from loragraft.server.aside import Aside
from loragraft.server.errors import ApiError
from loragraft.server.mailbox import Mailbox
from loragraft.server.metrics import Metrics
from loragraft.server.schema import LoraChoice

MOST_ADAPTERS = 16  # of one request
MOST_STRENGTH = 1000.0


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what one request may ask for."""

    body_bytes: int = 8 << 20
    body_seconds: float = 60.0
    """Until the whole body has come."""
    messages: int = 4096
    prompts: int = 64
    texts: int = 2048
    """To embed."""
    choices: int = 16
    stops: int = 16
    stop_characters: int = 1000
    biases: int = 4096
    top_logprobs: int = 20
    seconds: float | None = 600.0


@dataclass(slots=True)
class State:
    """One served model."""

    model: Model
    scheduler: Scheduler
    metrics: Metrics
    name: str
    """What clients call the base model."""
    adapters_dir: Path | None = None
    api_key: str | None = None
    limits: Limits = field(default_factory=Limits)
    any_host: bool = False
    """Whether the server may be called by any name (`server.security`)."""
    started: int = field(default_factory=lambda: int(time.time()))
    aside: Aside = field(default_factory=lambda: Aside(256))
    always: dict[str, float] = field(default_factory=dict)
    """The strength of adapters in requests to the base that name none (POST /lora-adapters); 0 where not listed."""
    mailbox: Mailbox = field(default_factory=Mailbox)

    def __post_init__(self) -> None:
        self.scheduler.outbox.delivered = self.mailbox.send

    @property
    def shelf(self) -> Shelf:
        return self.scheduler.shelf

    def adapters_of(self, model: str, lora: Sequence[LoraChoice] | None) -> tuple[tuple[str, float], ...]:
        """The adapters that a request means: those of `lora`, or the one that `model` names ("poet", "base:poet"), or
        for the base what POST /lora-adapters has set."""
        base, sign, named = model.partition(":")
        if model == self.name:
            named = ""
        elif self.shelf.knows(model):
            named = model
        elif not (sign and base == self.name and self.shelf.knows(named)):
            raise ApiError(
                f"model: no model {model!r} here; GET /v1/models lists what there is",
                status=404,
                param="model",
                code="model_not_found",
            )
        if lora is not None:
            if named:
                raise ApiError(
                    f"lora: the model {model!r} names an adapter already; ask for {self.name!r} with lora",
                    param="lora",
                )
            return self._chosen(lora)
        if named:
            return ((named, self.shelf.default_strength(named)),)
        return tuple((name, scale) for name, scale in self.always.items() if scale and self.shelf.knows(name))

    def adapter_by_id(self, number: int, param: str) -> Listed:
        """The adapter that GET /lora-adapters lists under `number`."""
        listed = self.shelf.listed()
        for one in listed:
            if one.number == number:
                return one
        raise ApiError(
            f"{param}: no adapter with id {number}; GET /lora-adapters lists {len(listed)}", param=param
        )

    def _chosen(self, lora: Sequence[LoraChoice]) -> tuple[tuple[str, float], ...]:
        if len(lora) > MOST_ADAPTERS:
            raise ApiError(
                f"lora: found {len(lora)} adapters, expected at most {MOST_ADAPTERS}", param="lora"
            )
        chosen: list[tuple[str, float]] = []
        for choice in lora:
            if (choice.id is None) == (choice.name is None):
                raise ApiError("lora: give each adapter's id or its name", param="lora")
            if choice.name is not None:
                name = choice.name.removeprefix(f"{self.name}:")
                if not self.shelf.knows(name):
                    raise ApiError(
                        f"lora: no adapter {choice.name!r}",
                        status=404,
                        param="lora",
                        code="adapter_not_found",
                    )
            else:
                assert choice.id is not None
                name = self.adapter_by_id(choice.id, "lora").name
            if not (isfinite(choice.scale) and abs(choice.scale) <= MOST_STRENGTH):
                raise ApiError(
                    f"lora: found scale {choice.scale}, expected a number up to {MOST_STRENGTH:g}",
                    param="lora",
                )
            if any(name == other for other, _ in chosen):
                raise ApiError(f"lora: {name!r} is given twice", param="lora")
            if choice.scale:
                chosen.append((name, choice.scale))
        return tuple(chosen)
