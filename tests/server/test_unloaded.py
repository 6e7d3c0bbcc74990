"""An adapter that is unloaded between the check of a request and its start."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import loragraft as lg
from loragraft.server.constraints import Grammars
from loragraft.server.conversing import Conversing
from loragraft.server.errors import ApiError
from loragraft.server.running import Running, complete
from loragraft.server.schema import ChatRequest, LoraChoice, Message
from loragraft.server.serve import ServeOptions, make_state
from loragraft.server.state import State
from paths import data
from served import chat_model


@pytest.fixture
def state(tmp_path: Path) -> Iterator[State]:
    model = lg.load(chat_model(tmp_path))
    state = make_state(model, [("poet", data("llama-kjv.shakespeare"), 1.0)], ServeOptions())
    state.scheduler.start()
    yield state
    state.aside.close()
    state.scheduler.stop(0)


@pytest.mark.parametrize(
    "asked", [{"model": "poet"}, {"model": "kjv:poet"}, {"model": "kjv", "lora": [LoraChoice(name="poet")]}]
)
def test_it_is_answered_as_one_that_never_was(state: State, asked: dict[str, Any]) -> None:
    body = ChatRequest(messages=[Message(role="user", content="Say")], max_tokens=2, **asked)
    conversing = Conversing(state, Grammars(state.model.tokenizer))
    request = conversing.request(body)
    state.shelf.unregister("poet")

    async def run() -> None:
        async with Running(state, request, body) as running:
            await complete(running)

    with pytest.raises(ApiError) as late:
        asyncio.run(run())
    with pytest.raises(ApiError) as never:
        conversing.request(body)
    assert (late.value.status, late.value.body) == (never.value.status, never.value.body)
    assert late.value.status == 404


def test_one_of_every_request_to_the_base(state: State) -> None:
    """Set by POST /lora-adapters: no field of the request is wrong."""
    body = ChatRequest(messages=[Message(role="user", content="Say")], max_tokens=2, model="kjv")
    state.always = {"poet": 1.0}
    request = Conversing(state, Grammars(state.model.tokenizer)).request(body)
    state.shelf.unregister("poet")

    async def run() -> None:
        async with Running(state, request, body) as running:
            await complete(running)

    with pytest.raises(ApiError, match="poet: no adapter of this name") as late:
        asyncio.run(run())
    assert late.value.status == 404
