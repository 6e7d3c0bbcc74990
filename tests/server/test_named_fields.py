"""Errors name the field that the client sent, whatever it is called inside."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from served import Served, chat_model, http, serving

SAID = [{"role": "user", "content": "Say"}]
LONG = "and the king " * 2000
#: Longer than the context in tokens, and not in the bytes that they could have.
LONGISH = "a b c d e f g " * 200
TOOL: dict[str, Any] = {"name": "f", "input_schema": {"type": "object"}}
FUNCTION = {"name": "f", "parameters": {"type": "object"}}
ANY_OBJECT: dict[str, Any] = {"type": "json_schema", "schema": {"type": "object"}}
CHAT: dict[str, Any] = {"model": "kjv", "messages": SAID}
ASKED: dict[str, Any] = {"model": "kjv", "input": "Say"}
MESSAGE: dict[str, Any] = {"model": "kjv", "messages": SAID, "max_tokens": 4}
BAD: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "nothing"}}}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(chat_model(tmp_path_factory.mktemp("served")), "--parallel", 2) as server:
        yield server


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("chat/completions", {**CHAT, "messages": said(LONG)}, "messages"),
        ("chat/completions", {**CHAT, "messages": said(LONGISH)}, "messages"),
        ("chat/completions", {**CHAT, "max_tokens": -1}, "max_tokens"),
        ("chat/completions", {**CHAT, "max_completion_tokens": -1}, "max_completion_tokens"),
        ("chat/completions", {**CHAT, "n": 3}, "n"),
        ("completions", {"model": "kjv", "prompt": LONG}, "prompt"),
        ("completions", {"model": "kjv", "prompt": LONGISH}, "prompt"),
        ("completions", {"model": "kjv", "prompt": "a", "logprobs": 99}, "logprobs"),
        ("responses", {**ASKED, "input": LONG}, "input"),
        ("responses", {**ASKED, "input": LONGISH}, "input"),
        ("responses", {**ASKED, "input": []}, "input"),
        ("responses", {**ASKED, "input": [{"role": "user", "content": "a"}] * 4097}, "input"),
        ("responses", {**ASKED, "max_output_tokens": -1}, "max_output_tokens"),
        ("responses", {**ASKED, "stop": [""]}, "stop"),
        ("responses", {**ASKED, "text": {"format": {"type": "json_schema"}}}, "text.format"),
        (
            "responses",
            {**ASKED, "text": {"format": {"type": "json_schema", "name": "x", "schema": BAD}}},
            "text.format",
        ),
        (
            "responses",
            {
                **ASKED,
                "text": {"format": {**ANY_OBJECT, "name": "x"}},
                "tools": [{"type": "function", **FUNCTION}],
                "tool_choice": "required",
            },
            "text.format",
        ),
        ("responses", {**ASKED, "prompt": {"id": "p"}}, "prompt"),
        ("messages", {**MESSAGE, "stop_sequences": [""]}, "stop_sequences"),
        ("messages", {**MESSAGE, "stop_sequences": ["x"] * 17}, "stop_sequences"),
        ("messages", {**MESSAGE, "messages": said(LONG)}, "messages"),
        ("messages", {**MESSAGE, "messages": said(LONGISH)}, "messages"),
        ("messages", {**MESSAGE, "max_tokens": 0}, "max_tokens"),
        (
            "messages",
            {**MESSAGE, "output_config": {"format": {**ANY_OBJECT, "schema": BAD}}},
            "output_config.format",
        ),
        (
            "messages",
            {
                **MESSAGE,
                "output_config": {"format": ANY_OBJECT},
                "tools": [TOOL],
                "tool_choice": {"type": "any"},
            },
            "output_config.format",
        ),
        ("messages", {**MESSAGE, "tool_choice": {"type": "any"}}, "tool_choice"),
        (
            "messages",
            {**MESSAGE, "tools": [TOOL], "tool_choice": {"type": "tool", "name": "g"}},
            "tool_choice",
        ),
    ],
)
def test_an_error_names_the_client_s_field(
    served: Served, path: str, body: dict[str, Any], field: str, stream: bool
) -> None:
    answer = http.post(f"{served.url}/v1/{path}", json={**body, "stream": stream})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["message"].startswith(f"{field}: ")
    if path != "messages":  # Anthropic's errors have no such field
        assert error["param"] == field


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("embeddings", {"model": "kjv", "input": LONG}, "input"),
        ("embeddings", {"model": "kjv", "input": LONGISH}, "input"),
        ("messages/count_tokens", {"model": "kjv", "messages": said(LONG)}, "messages"),
    ],
)
def test_an_error_of_what_is_not_streamed(
    served: Served, path: str, body: dict[str, Any], field: str
) -> None:
    answer = http.post(f"{served.url}/v1/{path}", json=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["message"].startswith(f"{field}: ")


def test_a_prompt_that_is_too_long_has_openai_s_code(served: Served) -> None:
    """Clients cut a conversation short by it."""
    answer = http.post(f"{served.url}/v1/chat/completions", json={**CHAT, "messages": said(LONG)})
    assert answer.json()["error"]["code"] == "context_length_exceeded"
