"""OpenAI's Responses API, by the official client's own calls."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from paths import data
from served import Served, chat_model, serving

HELLO = "What say you of the king?"
WEATHER: dict[str, Any] = {
    "type": "function",
    "name": "weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"enum": ["Ur", "Tyre"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder: Path = tmp_path_factory.mktemp("served")
    with serving(chat_model(folder), "--lora", f"poet={data('llama-kjv.shakespeare')}") as server:
        yield server


@pytest.fixture
def client(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def chatted(client: openai.OpenAI, model: str, **more: Any) -> str:
    messages = [{"role": "system", "content": "Speak."}, {"role": "user", "content": HELLO}]
    answer = client.chat.completions.create(model=model, messages=messages, temperature=0, **more)  # type: ignore[call-overload]
    return str(answer.choices[0].message.content)


@pytest.mark.parametrize("model", ["kjv", "poet"])
def test_an_answer_is_what_a_chat_gives(client: openai.OpenAI, model: str) -> None:
    answer = client.responses.create(
        model=model, input=HELLO, instructions="Speak.", max_output_tokens=12, temperature=0
    )
    assert answer.output_text == chatted(client, model, max_tokens=12)
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")  # type: ignore[union-attr]
    assert answer.usage is not None
    assert answer.usage.output_tokens == 12
    assert answer.usage.total_tokens == answer.usage.input_tokens + 12
    assert [each["name"] for each in answer.model_extra["loragraft"]["adapters"]] == [model] * (
        model == "poet"
    )  # type: ignore[index]


def test_a_stream_is_the_answer_in_events(client: openai.OpenAI) -> None:
    settings: dict[str, Any] = {"model": "poet", "input": HELLO, "max_output_tokens": 16, "temperature": 0}
    whole = client.responses.create(**settings)
    events = list(client.responses.create(**settings, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert len(deltas) > 4
    assert "".join(deltas) == whole.output_text == events[-1].response.output_text
    stop = whole.output_text[5:8]
    with client.responses.stream(
        **settings, extra_body={"stop": stop}
    ) as stream:  # the client's own gathering
        final = stream.get_final_response()
    assert final.status == "completed"
    assert final.output_text == whole.output_text[: whole.output_text.index(stop)]


def test_tools_and_their_results(client: openai.OpenAI) -> None:
    settings: dict[str, Any] = {
        "model": "kjv",
        "input": [{"role": "user", "content": [{"type": "input_text", "text": HELLO}]}],
        "tools": [WEATHER],
        "tool_choice": "required",
        "max_output_tokens": 100,
        "temperature": 0,
    }
    answer = client.responses.create(**settings)
    (call,) = answer.output
    assert (call.type, call.name) == ("function_call", "weather")
    assert json.loads(call.arguments)["city"] in ("Ur", "Tyre")
    events = list(client.responses.create(**settings, stream=True))
    done = [event for event in events if event.type == "response.function_call_arguments.done"]
    assert [event.arguments for event in done] == [call.arguments]
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
    more = client.responses.create(
        model="kjv", input=[*settings["input"], call, result], tools=[WEATHER], max_output_tokens=4
    )
    assert more.usage.input_tokens > answer.usage.input_tokens


def test_a_schema(client: openai.OpenAI) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "boolean"}}, "required": ["n"]}
    schema["additionalProperties"] = False
    answer = client.responses.create(
        model="kjv",
        input=HELLO,
        text={"format": {"type": "json_schema", "name": "number", "schema": schema}},
        max_output_tokens=60,
        temperature=0,
    )
    assert isinstance(json.loads(answer.output_text)["n"], bool)
    assert answer.text.format.name == "number"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("settings", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"store": True}, "store"),
        ({"background": True}, "background"),
        ({"tools": [{"type": "web_search"}]}, "tools.type"),
        ({"include": ["reasoning.encrypted_content"]}, "include"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "type"),
        ({"extra_body": {"colour": 1}}, "colour"),
    ],
)
def test_what_is_not_honoured_is_refused(client: openai.OpenAI, settings: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(**{"model": "kjv", "input": HELLO, **settings})
    assert param in str(refused.value.param)


def test_text_is_streamed_beside_tools(client: openai.OpenAI) -> None:
    settings: dict[str, Any] = {"model": "kjv", "input": HELLO, "max_output_tokens": 24, "temperature": 0}
    whole = client.responses.create(**settings, tools=[WEATHER])
    events = list(client.responses.create(**settings, tools=[WEATHER], stream=True))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert len(deltas) > 4
    (done,) = [event.text for event in events if event.type == "response.output_text.done"]
    assert "".join(deltas) == done == whole.output_text
