"""A conversation with a model, over the scheduler: replies in pieces, adapters by strength."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from loragraft.adapters.lora import Adapter
from loragraft.errors import LoragraftError
from loragraft.inference.model import Model
from loragraft.inference.sampling import Sampling
from loragraft.inference.scheduler.loop import Scheduler
from loragraft.inference.scheduler.request import Done, Event, Failed, Piece, Request
from loragraft.inference.scheduler.shelf import Shelf, plain_only
from loragraft.opening import load_adapter


class Turn(Iterator[str]):
    """One reply, as text in pieces. `tokens`: how many were made; `cached`: how many of the prompt's were known."""

    def __init__(self, scheduler: Scheduler, request: Request, messages: list[dict[str, Any]]) -> None:
        self._scheduler = scheduler
        self._request = request
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._messages = messages
        self._message = {"role": "assistant", "content": ""}
        self._over = False
        self.tokens = self.cached = 0
        request.emit = self._events.put
        scheduler.submit(request)
        messages.append(self._message)

    def __next__(self) -> str:
        while not self._over:
            event = self._events.get()
            if isinstance(event, Failed):
                self._over = True
                if not self._message["content"] and self._messages and self._messages[-1] is self._message:
                    self._messages.pop()
                raise event.error
            if isinstance(event, Done):
                self._over = True
                self.tokens, self.cached = event.completion_tokens, event.cached_tokens
            if isinstance(event, Piece) and event.text:
                self._message["content"] += event.text
                return event.text
        raise StopIteration

    def cancel(self) -> None:
        """Make no more of it; what was said stays in the conversation."""
        self._over = True
        self._scheduler.cancel(self._request)


class Conversation:
    """What was said, and the settings for what comes next. A context manager: its scheduler runs inside the block."""

    def __init__(
        self,
        model: Model,
        adapters: Sequence[tuple[str, Path, float]] = (),
        *,
        system: str | None = None,
        temperature: float = 0.8,
        max_tokens: int = 512,
        seed: int | None = None,
    ) -> None:
        self.model = str(model.path)
        self.system = system
        self.temperature = temperature
        self.messages: list[dict[str, Any]] = []
        self.strengths: dict[str, float] = {}
        self._model = model
        self._max_tokens = max_tokens
        self._seed = seed
        self.notes: list[str] = []
        self._shelf = Shelf(model.program, self._read)
        self._scheduler = Scheduler(
            model.program, model.tokenizer, self._shelf, context=model.context_length, subject=model.path.name
        )
        for name, path, strength in adapters:
            self.load(name, path, strength)

    def __enter__(self) -> Self:
        self._scheduler.start()
        return self

    def __exit__(self, *what: object) -> None:
        self._scheduler.stop(0)

    def _read(self, path: Path) -> Adapter:
        adapter = plain_only(load_adapter(path, self._model.source, invoked=True))
        self.notes += adapter.notes
        return adapter

    def load(self, name: str, path: Path, strength: float = 1.0) -> None:
        """Add an adapter; what there is to know of it goes into `notes`.

        Raises AdapterError or FormatError for one that does not fit."""
        trial = Shelf.trial_name(name)  # what has the name now keeps it if this one cannot be loaded
        self._shelf.register(trial, path)
        try:
            self._shelf.preload(trial)
        except LoragraftError:
            self._shelf.unregister(trial)
            raise
        self._shelf.rename(trial, name)
        self.strengths[name] = strength

    def set_strength(self, name: str, strength: float) -> None:
        """For the replies to come; 0 is off."""
        if name not in self.strengths:
            listed = ", ".join(self.strengths) or "none"
            raise LoragraftError(name or "/lora", "no adapter of this name", expected=f"one of: {listed}")
        self.strengths[name] = strength

    def say(self, text: str) -> Turn:
        """Ask for the reply to `text`. A message that got none is forgotten."""
        if self.messages and self.messages[-1]["role"] == "user":
            self.messages.pop()
        self.messages.append({"role": "user", "content": text})
        try:
            return self._reply()
        except LoragraftError:
            self.messages.pop()
            raise

    def again(self) -> Turn:
        """Drop the last reply and make another."""
        if not self.messages:
            raise LoragraftError("/again", "there is no message to repeat")
        if self.messages[-1]["role"] == "assistant":
            self.messages.pop()
        return self._reply()

    def restart(self) -> None:
        """Forget what was said."""
        self.messages.clear()

    def _reply(self) -> Turn:
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        prompt = self._model.chat_prompt([*system, *self.messages])
        room = self._model.context_length - len(prompt)
        request = Request(
            prompt,
            emit=lambda event: None,
            adapters=tuple((name, strength) for name, strength in self.strengths.items() if strength),
            max_tokens=min(self._max_tokens, room),
            sampling=Sampling(temperature=self.temperature, seed=self._seed),
        )
        return Turn(self._scheduler, request, self.messages)
