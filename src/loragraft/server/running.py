"""From an endpoint's coroutine to the scheduler's thread and back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeVar

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from loragraft.errors import LoragraftError, UnknownAdapterError
from loragraft.inference.scheduler.request import (
    Done,
    Embedded,
    Event,
    Failed,
    Finished,
    FinishReason,
    Piece,
    Ran,
    Request,
    Scored,
    Started,
)
from loragraft.server import answers
from loragraft.server.errors import ApiError, api_error
from loragraft.server.mailbox import Inbox
from loragraft.server.schema import LoraChoice
from loragraft.server.state import State

T = TypeVar("T")

#: The status that proxies log for a client that went away (nginx's); nobody reads it.
CLIENT_GONE = 499


class Asked(Protocol):
    """The fields that say which adapters a request runs with."""

    @property
    def model(self) -> str: ...

    @property
    def lora(self) -> list[LoraChoice] | None: ...


class Running:
    """A submitted request, as an asynchronous iterator over its events up to `Done`.

    `asked` is what the client said of its model. Raises ApiError for a request that fails. Leaving the block before
    that cancels the request.
    """

    def __init__(self, state: State, request: Request, asked: Asked) -> None:
        self._state, self._asked = state, asked
        self._scheduler, self._mailbox = state.scheduler, state.mailbox
        self.request = request
        self._inbox = Inbox()
        self._over = False
        self.adapters: tuple[Ran, ...] = ()
        self.cached = 0
        self.done: Done | None = None

    async def __aenter__(self) -> Running:
        self._mailbox.loop = asyncio.get_running_loop()
        self.request.emit = partial(self._mailbox.put, self._inbox)
        try:
            self._scheduler.submit(self.request)
        except LoragraftError as error:
            self._over = True
            raise api_error(error) from None
        return self

    async def __aexit__(self, *what: object) -> None:
        if not self._over:
            self._scheduler.cancel(self.request)

    @property
    def more(self) -> bool:
        """Whether the next event is there already."""
        return len(self._inbox) > 0

    async def started(self) -> None:
        """Wait until the request is worked on: what it runs with is known then, and most errors have shown."""
        event = await self._next()
        assert isinstance(event, Started)
        self.adapters, self.cached = event.adapters, event.cached_tokens

    async def __aiter__(self) -> AsyncIterator[Piece | Finished | Embedded]:
        while True:
            event = await self._next()
            if isinstance(event, Done):
                self._over, self.done = True, event
                return
            if not isinstance(event, Started):
                assert not isinstance(event, Failed)
                yield event

    async def _next(self) -> Event:
        event = await self._inbox.get()
        if isinstance(event, Failed):
            self._over = True
            if isinstance(event.error, UnknownAdapterError):  # it was unloaded since we looked
                self._state.adapters_of(self._asked.model, self._asked.lora)
            raise api_error(event.error)
        return event


async def begun(running: Running, http: HttpRequest) -> None:
    """Submit it and wait until it is worked on. Raises ApiError where that fails, or the client goes away before."""
    async with AsyncExitStack() as undo:
        await undo.enter_async_context(running)
        await unless_gone(running.started(), http)
        undo.pop_all()


@dataclass(slots=True)
class Reply:
    """One complete choice."""

    text: str = ""
    tokens: list[Scored] = field(default_factory=list)
    reason: FinishReason = "length"
    stop_text: str | None = None


async def gather(running: Running) -> list[Reply]:
    """All choices, complete. Raises ApiError for a request that fails."""
    replies = [Reply() for _ in range(running.request.choices)]
    texts: list[list[str]] = [[] for _ in replies]
    async for event in running:
        if isinstance(event, Piece):
            texts[event.choice].append(event.text)
            replies[event.choice].tokens.extend(event.tokens)
        elif isinstance(event, Finished):
            replies[event.choice].reason = event.reason
            replies[event.choice].stop_text = event.stop_text
    for reply, parts in zip(replies, texts, strict=True):
        reply.text = "".join(parts)
    return replies


async def complete(running: Running) -> list[Reply]:
    """All choices, from the start."""
    await running.started()
    return await gather(running)


async def streamed(running: Running, events: AsyncIterator[bytes], http: HttpRequest) -> Response:
    """`events` of the running request as an answer, once it is worked on."""
    await begun(running, http)
    return answers.stream(_joined(events, running), receipt_header(running.adapters), running)


async def _joined(events: AsyncIterator[bytes], running: Running) -> AsyncIterator[bytes]:
    """What can be sent at once, in one: a chunk costs more than what is in it."""
    held: list[bytes] = []
    async for event in events:
        held.append(event)
        if not running.more:
            yield b"".join(held)
            held.clear()
    if held:
        yield b"".join(held)


async def unless_gone(work: Coroutine[Any, Any, T], http: HttpRequest) -> T:
    """Await `work`, unless the client goes away first: then ApiError, and the work is cancelled."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(http))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError("the client went away", status=CLIENT_GONE)
        return await task
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _gone(http: HttpRequest) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


def receipt(adapters: Sequence[Ran], done: Done | None = None) -> dict[str, Any]:
    """What ran, for the `loragraft` field of an answer."""
    facts: dict[str, Any] = {
        "adapters": [
            {
                "name": ran.name,
                "strength": ran.strength,
                "scale": ran.scale,
                "tensors": ran.tensors,
                "changing": ran.changing,
                "sha256": ran.sha256,
                **({} if ran.active_from is None else {"active_from": ran.active_from}),
            }
            for ran in adapters
        ]
    }
    if done is not None:
        facts["cached_tokens"] = done.cached_tokens
        facts["seconds"] = {
            "queued": round(done.queued_seconds, 4),
            "first_token": round(done.first_token_seconds, 4),
            "total": round(done.seconds, 4),
        }
    return facts


def receipt_header(adapters: Sequence[Ran]) -> dict[str, str]:
    """The same for the header: name, strength and digest of each adapter, or "none"."""
    listed = ", ".join(
        f"{_token(ran.name)};strength={ran.strength:g};sha256={ran.sha256}" for ran in adapters
    )
    return {"x-loragraft-adapters": listed or "none"}


def _token(name: str) -> str:
    return "".join(char if char.isascii() and (char.isalnum() or char in "-_.") else "_" for char in name)
