"""Anthropic's Messages API, by the official client's own calls."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from paths import data
from served import Served, chat_model, serving

GREEDY = {"temperature": 0}  # of which newer clients know no name
HELLO: list[Any] = [{"role": "user", "content": "What say you of the king?"}]
WEATHER: dict[str, Any] = {
    "name": "weather",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"enum": ["Ur", "Tyre"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder: Path = tmp_path_factory.mktemp("served")
    lora = f"poet={data('llama-kjv.shakespeare')}"
    with serving(chat_model(folder), "--lora", lora, "--api-key", "secret") as server:
        yield server


@pytest.fixture
def client(served: Served) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=served.url, api_key="secret", max_retries=0) as client:
        yield client


@pytest.mark.parametrize("model", ["kjv", "poet"])
def test_a_message_is_what_a_chat_gives(client: anthropic.Anthropic, served: Served, model: str) -> None:
    answer = client.messages.create(
        model=model, system="Speak.", messages=HELLO, max_tokens=12, extra_body=GREEDY
    )
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="secret") as other:
        messages = [{"role": "system", "content": "Speak."}, *HELLO]
        same = other.chat.completions.create(model=model, messages=messages, max_tokens=12, temperature=0)
    assert answer.content[0].text == same.choices[0].message.content  # type: ignore[union-attr]
    assert answer.stop_reason == "max_tokens"
    assert answer.usage.output_tokens == 12
    counted = client.messages.count_tokens(model=model, system="Speak.", messages=HELLO)
    read = answer.usage.input_tokens + (answer.usage.cache_read_input_tokens or 0)
    assert counted.input_tokens == read == same.usage.prompt_tokens  # type: ignore[union-attr]
    again = client.messages.create(model=model, system="Speak.", messages=HELLO, max_tokens=1)
    assert again.usage.cache_read_input_tokens == read - 1


def test_a_stream_is_the_message_in_events(client: anthropic.Anthropic) -> None:
    settings: dict[str, Any] = {"model": "poet", "messages": HELLO, "max_tokens": 16, "extra_body": GREEDY}
    whole = client.messages.create(**settings)
    events = list(client.messages.create(**settings, stream=True))
    kinds = [event.type for event in events if event.type != "ping"]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    with client.messages.stream(**settings) as stream:  # the client's own gathering
        texts = list(stream.text_stream)
        final = stream.get_final_message()
    assert len(texts) > 4
    assert "".join(texts) == final.content[0].text == whole.content[0].text  # type: ignore[union-attr]
    assert (final.stop_reason, final.usage.output_tokens) == ("max_tokens", 16)


def test_stop_sequences(client: anthropic.Anthropic) -> None:
    settings: dict[str, Any] = {"model": "kjv", "messages": HELLO, "max_tokens": 16, "extra_body": GREEDY}
    whole = client.messages.create(**settings).content[0].text  # type: ignore[union-attr]
    stop = whole[3:6]
    cut = client.messages.create(**settings, stop_sequences=["never said", stop])
    assert (cut.stop_reason, cut.stop_sequence) == ("stop_sequence", stop)
    assert cut.content[0].text == whole[: whole.index(stop)]  # type: ignore[union-attr]
    with client.messages.stream(**settings, stop_sequences=["never said", stop]) as stream:
        assert stream.get_final_message().stop_sequence == stop


def test_a_reply_that_is_begun_is_continued(client: anthropic.Anthropic) -> None:
    settings: dict[str, Any] = {"model": "kjv", "max_tokens": 12, "extra_body": GREEDY}
    whole = client.messages.create(messages=HELLO, **settings).content[0].text  # type: ignore[union-attr]
    words = whole.split(" ")
    begun = " ".join(words[:2])
    rest = client.messages.create(messages=[*HELLO, {"role": "assistant", "content": begun}], **settings)
    assert (begun + rest.content[0].text).startswith(whole)  # type: ignore[union-attr]


def test_a_schema(client: anthropic.Anthropic) -> None:
    schema = WEATHER["input_schema"]
    answer = client.messages.create(
        model="kjv",
        messages=HELLO,
        max_tokens=60,
        output_config={"format": {"type": "json_schema", "schema": schema}},
        extra_body=GREEDY,
    )
    assert json.loads(answer.content[0].text)["city"] in ("Ur", "Tyre")  # type: ignore[union-attr]


def test_tools_and_their_results(client: anthropic.Anthropic) -> None:
    settings: dict[str, Any] = {
        "model": "kjv",
        "messages": HELLO,
        "tools": [WEATHER],
        "tool_choice": {"type": "tool", "name": "weather"},
        "max_tokens": 100,
        "extra_body": GREEDY,
    }
    answer = client.messages.create(**settings)
    (used,) = answer.content
    assert (answer.stop_reason, used.type, used.name) == ("tool_use", "tool_use", "weather")  # type: ignore[union-attr]
    assert used.input["city"] in ("Ur", "Tyre")  # type: ignore[union-attr,index,call-overload]
    with client.messages.stream(**settings) as stream:
        streamed = stream.get_final_message()
    assert streamed.content[0].input == used.input  # type: ignore[union-attr]
    result = {"type": "tool_result", "tool_use_id": used.id, "content": "rain"}  # type: ignore[union-attr]
    turns = [*HELLO, {"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
    more = client.messages.create(model="kjv", messages=turns, tools=[WEATHER], max_tokens=4)
    assert more.usage.output_tokens > 0


def test_refusals_are_anthropic_s(client: anthropic.Anthropic, served: Served) -> None:
    settings: dict[str, Any] = {"model": "kjv", "messages": HELLO, "max_tokens": 4}
    with pytest.raises(anthropic.NotFoundError) as missing:
        client.messages.create(**{**settings, "model": "nobody"})
    assert missing.value.body["error"]["type"] == "not_found_error"  # type: ignore[index,call-overload]
    image = [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "x"}}]}]
    for wrong in ({"messages": image}, {"extra_body": {"colour": 1}}, {"thinking": {"type": "adaptive"}}):
        with pytest.raises(anthropic.BadRequestError) as refused:
            client.messages.create(**{**settings, **wrong})
        assert refused.value.body["error"]["type"] == "invalid_request_error"  # type: ignore[index,call-overload]
    with (
        anthropic.Anthropic(base_url=served.url, api_key="wrong", max_retries=0) as stranger,
        pytest.raises(anthropic.AuthenticationError) as unknown,
    ):
        stranger.messages.create(**settings)
    assert unknown.value.body["error"]["type"] == "authentication_error"  # type: ignore[index,call-overload]


def test_text_is_streamed_beside_tools(client: anthropic.Anthropic) -> None:
    settings: dict[str, Any] = {"model": "kjv", "messages": HELLO, "max_tokens": 24, "extra_body": GREEDY}
    whole = client.messages.create(**settings, tools=[WEATHER])
    with client.messages.stream(**settings, tools=[WEATHER]) as stream:
        texts = list(stream.text_stream)
        final = stream.get_final_message()
    assert len(texts) > 4
    assert "".join(texts) == final.content[0].text == whole.content[0].text  # type: ignore[union-attr]
