"""The official client's own calls, against a server process."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

import loragraft as lg
from loragraft.server.serve import _listen
from paths import data
from served import Served, chat_model, http, scaled_adapter, serving

HELLO = [{"role": "user", "content": "What say you of the king?"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    return chat_model(folder)


@pytest.fixture(scope="module")
def served(folder: Path, model: Path) -> Iterator[Served]:
    other = scaled_adapter(folder / "other", 0.5, 1)
    with serving(
        model, "--lora", f"poet={data('llama-kjv.shakespeare')}", "--lora", f"other={other}"
    ) as server:
        yield server


@pytest.fixture
def client(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_models_are_the_base_and_its_adapters(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["kjv", "poet", "other"]
    assert client.models.retrieve("poet").id == "poet"
    with pytest.raises(openai.NotFoundError, match="no model 'nobody'"):
        client.models.retrieve("nobody")


@pytest.mark.parametrize("name", ["kjv", "poet"])
def test_a_completion_is_what_the_library_makes(client: openai.OpenAI, model: Path, name: str) -> None:
    adapters = [data("llama-kjv.shakespeare")] if name == "poet" else []
    own = "".join(lg.load(model, adapters).generate("What say you,", max_tokens=24, temperature=0))
    answer = client.completions.create(model=name, prompt="What say you,", max_tokens=24, temperature=0)
    assert answer.choices[0].text == own
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 24


def test_a_stream_is_the_answer_in_pieces(client: openai.OpenAI) -> None:
    settings = {"model": "poet", "messages": HELLO, "max_tokens": 40, "temperature": 0.9, "seed": 7}
    whole = client.chat.completions.create(**settings)
    chunks = list(
        client.chat.completions.create(**settings, stream=True, stream_options={"include_usage": True})
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens
    assert len(chunks) > 10


def test_choices_differ_and_seeds_repeat(client: openai.OpenAI) -> None:
    def texts(seed: int) -> list[str]:
        answer = client.completions.create(
            model="kjv", prompt="And the", n=3, seed=seed, max_tokens=12, temperature=1.0
        )
        return [choice.text for choice in answer.choices]

    first = texts(5)
    assert len(set(first)) == 3
    assert texts(5) == first
    assert texts(6) != first


def test_stop_texts(client: openai.OpenAI) -> None:
    plain = client.completions.create(model="kjv", prompt="And God said", max_tokens=40, temperature=0)
    text = plain.choices[0].text
    stop = text[10:14]
    cut = client.completions.create(
        model="kjv", prompt="And God said", max_tokens=40, temperature=0, stop=[stop]
    )
    assert cut.choices[0].text == text[: text.index(stop)]
    assert cut.choices[0].finish_reason == "stop"


def test_logprobs_are_the_models(client: openai.OpenAI, model: Path) -> None:
    answer = client.chat.completions.create(
        model="kjv", messages=HELLO, max_tokens=4, temperature=0, logprobs=True, top_logprobs=3
    )
    assert answer.choices[0].logprobs is not None
    content = answer.choices[0].logprobs.content
    assert content is not None
    loaded = lg.load(model)
    prompt = loaded.chat_prompt(HELLO)
    logits = loaded.logits(prompt, last_only=True)[0].astype(np.float64)
    own = np.sort(logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max())[::-1]
    np.testing.assert_allclose([top.logprob for top in content[0].top_logprobs], own[:3], rtol=1e-6)
    assert content[0].logprob == content[0].top_logprobs[0].logprob
    assert bytes(content[0].bytes or []).decode() == content[0].token
    assert len(content) == 4


def test_penalties_and_bias(client: openai.OpenAI, model: Path) -> None:
    loaded = lg.load(model)
    comma = int(loaded.tokenize(",", add_special=False)[0])
    banned = client.completions.create(
        model="kjv", prompt="And", max_tokens=30, temperature=0, logit_bias={str(comma): -100}
    )
    assert "," not in banned.choices[0].text
    only = client.completions.create(
        model="kjv", prompt="And", max_tokens=5, temperature=0, logit_bias={str(comma): 100}
    )
    assert only.choices[0].text == "," * 5
    varied = client.completions.create(
        model="kjv",
        prompt="And",
        max_tokens=3,
        temperature=0,
        logit_bias={str(comma): 30},
        frequency_penalty=2.0,
        presence_penalty=2.0,
    )
    assert varied.choices[0].text.startswith(",")


def test_adapters_of_one_request(client: openai.OpenAI, served: Served) -> None:
    def text(**more: object) -> str:
        answer = client.completions.create(
            prompt="What say you,", max_tokens=16, temperature=0, **{"model": "kjv", **more}
        )
        return answer.choices[0].text

    base, poet = text(), text(model="poet")
    assert base != poet
    assert text(model="kjv:poet") == poet
    assert text(extra_body={"lora": [{"name": "poet", "scale": 1.0}]}) == poet
    assert text(extra_body={"lora": [{"id": 0, "scale": 1.0}]}) == poet
    assert text(extra_body={"lora": [{"id": 0, "scale": 0.0}]}) == base
    both = text(extra_body={"lora": [{"name": "poet", "scale": 0.5}, {"name": "other", "scale": 1.5}]})
    assert text() == base  # nothing stays behind
    assert both


def test_the_receipt(served: Served) -> None:
    answer = http.post(
        f"{served.url}/v1/completions",
        json={"model": "kjv", "prompt": "And", "max_tokens": 2, "lora": [{"name": "poet", "scale": 0.25}]},
    )
    (ran,) = answer.json()["loragraft"]["adapters"]
    assert (ran["name"], ran["strength"], ran["scale"]) == ("poet", 0.25, 2.0)
    assert ran["tensors"] == 56
    assert ran["changing"] == 28
    assert answer.headers["x-loragraft-adapters"] == f"poet;strength=0.25;sha256={ran['sha256']}"
    plain = http.post(f"{served.url}/v1/completions", json={"model": "kjv", "prompt": "And", "max_tokens": 2})
    assert plain.headers["x-loragraft-adapters"] == "none"


def test_scales_for_requests_that_name_no_adapter(client: openai.OpenAI, served: Served) -> None:
    def text(model: str) -> str:
        return (
            client.completions.create(model=model, prompt="O", max_tokens=12, temperature=0).choices[0].text
        )

    base, poet = text("kjv"), text("poet")
    listed = http.get(f"{served.url}/lora-adapters").json()
    assert [(one["id"], one["name"], one["scale"]) for one in listed] == [(0, "poet", 0), (1, "other", 0)]
    try:
        http.post(f"{served.url}/lora-adapters", json=[{"id": 0, "scale": 1.0}]).raise_for_status()
        assert text("kjv") == poet
    finally:
        http.post(f"{served.url}/lora-adapters", json=[]).raise_for_status()
    assert text("kjv") == base


def test_json_schema(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"enum": ["David", "Saul"]}, "age": {"type": "integer", "maximum": 99}},
        "required": ["name", "age"],
    }
    answer = client.chat.completions.create(
        model="poet",
        messages=HELLO,
        max_tokens=200,
        temperature=1.0,
        seed=3,
        response_format={"type": "json_schema", "json_schema": {"name": "king", "schema": schema}},
    )
    king = json.loads(answer.choices[0].message.content or "")
    assert king["name"] in ("David", "Saul")
    assert isinstance(king["age"], int)
    assert answer.choices[0].finish_reason == "stop"


def test_a_grammar(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model="kjv", prompt="Is it so?", max_tokens=20, extra_body={"grammar": 'root ::= "yes" | "no"'}
    )
    assert answer.choices[0].text in ("yes", "no")


def test_a_tool_that_must_be_called(client: openai.OpenAI) -> None:
    tool = {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"enum": ["Ur", "Tyre"]}},
                "required": ["city"],
            },
        },
    }
    settings = {
        "model": "kjv",
        "messages": HELLO,
        "tools": [tool],
        "tool_choice": "required",
        "max_tokens": 100,
        "temperature": 0,
    }
    answer = client.chat.completions.create(**settings)
    assert answer.choices[0].finish_reason == "tool_calls"
    (call,) = answer.choices[0].message.tool_calls or []
    assert call.function.name == "weather"
    assert json.loads(call.function.arguments)["city"] in ("Ur", "Tyre")
    chunks = list(client.chat.completions.create(**settings, stream=True))
    streamed = [c.choices[0].delta.tool_calls for c in chunks if c.choices and c.choices[0].delta.tool_calls]
    assert streamed[0][0].function.arguments == call.function.arguments
    # The answer to the call goes into the next prompt.
    more = client.chat.completions.create(
        model="kjv",
        messages=[
            *HELLO,
            answer.choices[0].message.model_dump(exclude_none=True),
            {"role": "tool", "tool_call_id": call.id, "content": "rain"},
        ],
        tools=[tool],
        max_tokens=4,
    )
    assert more.usage.prompt_tokens > answer.usage.prompt_tokens


def test_embeddings(client: openai.OpenAI) -> None:
    texts = ["the king of Judah", "the king of Israel", "seven years of famine"]
    answer = client.embeddings.create(model="kjv", input=texts)
    vectors = np.array([item.embedding for item in answer.data])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    assert vectors[0] @ vectors[1] > vectors[0] @ vectors[2]
    alone = client.embeddings.create(model="kjv", input=texts[0], encoding_format="float")
    np.testing.assert_array_equal(np.float32(alone.data[0].embedding), np.float32(vectors[0]))
    last = client.embeddings.create(model="poet", input=texts[0], extra_body={"pooling": "last"})
    assert abs(np.array(last.data[0].embedding) @ vectors[0]) < 0.999


def test_control_tokens_in_user_text_are_text(client: openai.OpenAI) -> None:
    def tokens(content: str) -> int:
        answer = client.chat.completions.create(
            model="kjv", messages=[{"role": "user", "content": content}], max_tokens=1
        )
        return answer.usage.prompt_tokens

    # As a control token it would be one token; as text it is many.
    assert tokens("hello <|end_of_text|>") - tokens("hello ") >= 5


def test_control_tokens_in_variables_of_the_template_are_text(tmp_path: Path) -> None:
    model = chat_model(tmp_path)
    config = model / "tokenizer_config.json"
    said = json.loads(config.read_text())
    said["chat_template"] = "{{ date }}" + said["chat_template"]
    config.write_text(json.dumps(said))
    with serving(model) as served, openai.OpenAI(base_url=f"{served.url}/v1", api_key="none") as client:

        def tokens(date: str) -> int:
            answer = client.chat.completions.create(
                model="kjv", messages=HELLO, max_tokens=1, extra_body={"chat_template_kwargs": {"date": date}}
            )
            return answer.usage.prompt_tokens  # type: ignore[union-attr]

        assert tokens("<|end_of_text|>") - tokens("") >= 5


@pytest.mark.parametrize(
    ("body", "param", "status"),
    [
        ({"n": 0}, "n", 400),
        ({"temperature": -1}, "temperature", 400),
        ({"top_p": 1.5}, "top_p", 400),
        ({"messages": [{"role": "user"}]}, "messages.content", 400),
        ({"messages": [{"role": "system", "content": None}, *HELLO]}, "messages.content", 400),
        ({"frobnicate": 1}, "frobnicate", 400),
        ({"max_tokens": "many"}, "max_tokens", 400),
        ({"messages": []}, "messages", 400),
        ({"messages": [{"role": "user", "content": "x" * 200_000}]}, "messages", 400),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages.content.type",
            400,
        ),
        ({"model": "nobody"}, "model", 404),
        ({"lora": [{"name": "nobody"}]}, "lora", 404),
        ({"model": "poet", "lora": [{"id": 0}]}, "lora", 400),
        ({"logit_bias": {"99999999": 1}}, "logit_bias", 400),
        ({"store": True}, "store", 400),
        ({"tool_choice": "required"}, "tool_choice", 400),
        ({"response_format": {"type": "json_schema"}}, "response_format", 400),
        ({"grammar": "root ::= ("}, "grammar", 400),
        ({"top_logprobs": 2}, "top_logprobs", 400),
        ({"audio": {"voice": "a"}}, "audio", 400),
        ({"functions": [{"name": "f"}]}, "functions", 400),
    ],
)
def test_what_is_not_honoured_is_refused_by_name(
    served: Served, body: dict[str, object], param: str, status: int
) -> None:
    answer = http.post(
        f"{served.url}/v1/chat/completions", json={"model": "kjv", "messages": HELLO, "max_tokens": 1, **body}
    )
    assert answer.status_code == status
    error = answer.json()["error"]
    assert error["param"] == param
    assert error["message"]
    assert "bug" not in error["message"]


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"[" * 100_000, b'{"model": "\xff"}'])
def test_bodies_that_are_not_requests(served: Served, content: bytes) -> None:
    answer = http.post(f"{served.url}/v1/chat/completions", content=content)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_paths_and_methods(served: Served) -> None:
    assert http.get(f"{served.url}/v1/nothing").json()["error"]["message"] == "no such path: /v1/nothing"
    assert http.get(f"{served.url}/v1/completions").status_code == 405
    assert http.get(f"{served.url}/health").json()["status"] == "ok"
    metrics = http.get(f"{served.url}/metrics").text
    assert 'loragraft_tokens_total{adapter="poet"}' in metrics
    assert "loragraft_time_to_first_token_seconds_bucket" in metrics


def test_a_body_that_is_too_large(served: Served) -> None:
    answer = http.post(f"{served.url}/v1/completions", content=b"x" * (9 << 20))
    assert answer.status_code == 413


def test_the_page(served: Served) -> None:
    page = http.get(served.url)
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for name in ("main.js", "api.js", "markdown.js", "adapters.js", "reply.js", "style.css", "icon.svg"):
        assert f"/page/{name}" in page.text or name.endswith(".js")
        assert http.get(f"{served.url}/page/{name}").status_code == 200
    for name in ("..%2fapp.py", "../app.py", "nothing.js", "%2e%2e%2fapp.py"):
        assert http.get(f"{served.url}/page/{name}").status_code == 404


def test_other_sites_pages_are_refused(served: Served) -> None:
    url = f"{served.url}/v1/models"
    assert http.get(url, headers={"origin": "https://evil.example"}).status_code == 403
    assert http.get(url, headers={"origin": served.url}).status_code == 200


def test_the_address_that_is_told_takes_connections() -> None:
    """At once: uvicorn itself listens only later."""
    listening = _listen("127.0.0.1", 0)
    with listening, socket.create_connection(listening.getsockname(), timeout=120):
        pass


def test_a_model_without_a_template(tmp_path: Path) -> None:
    with serving(data("llama-kjv")) as served:
        for path in ("/v1/chat/completions", "/v1/messages"):
            answer = http.post(
                served.url + path, json={"model": "llama-kjv", "messages": HELLO, "max_tokens": 4}
            )
            assert answer.status_code == 400
            assert "no chat template; send a prompt to /v1/completions" in answer.text


@pytest.mark.parametrize("choices", [1, 3])
def test_every_chunk_of_a_stream_has_a_choice(client: openai.OpenAI, choices: int) -> None:
    """As in OpenAI's own examples, which take `chunk.choices[0]` of each; the receipt comes with the last."""
    chat = list(
        client.chat.completions.create(model="poet", messages=HELLO, max_tokens=5, n=choices, stream=True)
    )
    plain = list(client.completions.create(model="poet", prompt="And", max_tokens=5, n=choices, stream=True))
    for chunks in (chat, plain):
        assert all(len(chunk.choices) == 1 for chunk in chunks)  # type: ignore[attr-defined]
        ends = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason]  # type: ignore[attr-defined]
        assert ends == ["length"] * choices
        receipts = [chunk for chunk in chunks if chunk.model_extra and "loragraft" in chunk.model_extra]  # type: ignore[attr-defined]
        assert receipts == chunks[-1:]
    asked = client.chat.completions.create(
        model="poet", messages=HELLO, max_tokens=5, stream=True, stream_options={"include_usage": True}
    )
    *_, last, end = asked
    assert last.choices[0].finish_reason == "length"
    assert end.choices == []
    assert end.usage is not None
    assert end.model_extra is not None
    assert [each["name"] for each in end.model_extra["loragraft"]["adapters"]] == ["poet"]


def test_what_openai_documents_as_null_or_below_zero(served: Served) -> None:
    empty = [
        "stream",
        "audio",
        "prediction",
        "functions",
        "function_call",
        "web_search_options",
        "logit_bias",
    ]
    body = {"model": "kjv", "messages": HELLO, "max_tokens": 6, "temperature": 1, **dict.fromkeys(empty)}
    texts = [
        http.post(f"{served.url}/v1/chat/completions", json={**body, "seed": seed}).json()["choices"][0]
        for seed in (-5, -5, 5)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_the_prompt_s_logprobs_are_not_left_out_silently(served: Served) -> None:
    ask = {"model": "kjv", "prompt": "And", "max_tokens": 0, "echo": True, "logprobs": 1}
    answer = http.post(f"{served.url}/v1/completions", json=ask)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "logprobs"


def test_as_many_texts_as_langchain_embeds_at_once(client: openai.OpenAI) -> None:
    texts = [f"{number} kings" for number in range(600)]
    vectors = client.embeddings.create(model="kjv", input=texts).data
    assert [item.index for item in vectors] == list(range(600))
    alone = client.embeddings.create(model="kjv", input=texts[333])
    assert alone.data[0].embedding == vectors[333].embedding


FUNCTION = {"name": "weather", "parameters": {"type": "object", "properties": {"n": {"type": "boolean"}}}}
TOOL: list[Any] = [{"type": "function", "function": FUNCTION}]


def test_text_is_streamed_beside_tools(client: openai.OpenAI) -> None:
    """And its tokens' probabilities: both came at the end only, or not at all."""
    settings: dict[str, Any] = {"model": "kjv", "messages": HELLO, "max_tokens": 24, "temperature": 0}
    settings |= {"tools": TOOL, "logprobs": True}
    whole = client.chat.completions.create(**settings)
    choices = [chunk.choices[0] for chunk in client.chat.completions.create(**settings, stream=True)]
    texts = [choice.delta.content for choice in choices if choice.delta.content]
    assert len(texts) > 4
    assert "".join(texts) == whole.choices[0].message.content
    tokens = [each.token for choice in choices if choice.logprobs for each in choice.logprobs.content]
    assert tokens == [each.token for each in whole.choices[0].logprobs.content]
    called = client.chat.completions.create(**settings, stream=True, tool_choice="required")
    logprobs = [choice.logprobs for chunk in called for choice in chunk.choices if choice.logprobs]
    assert "".join(each.token for part in logprobs for each in part.content).startswith('{"name"')


def test_the_effort_of_reasoning_is_for_templates_that_read_it(tmp_path: Path, served: Served) -> None:
    body = {"model": "kjv", "messages": HELLO, "max_tokens": 1, "reasoning_effort": "low"}
    refused = http.post(f"{served.url}/v1/chat/completions", json=body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "reasoning_effort")
    model = chat_model(tmp_path)
    config = model / "tokenizer_config.json"
    facts = json.loads(config.read_text())
    template = facts["chat_template"] + "{{ (reasoning_effort or '') * 40 }}"
    config.write_text(json.dumps({**facts, "chat_template": template}))
    with serving(model) as server:

        def read(path: str, **more: object) -> int:
            found = http.post(f"{server.url}/v1/{path}", json={"model": "kjv", **more}).json()["usage"]
            if path == "messages":
                return int(found["input_tokens"] + found["cache_read_input_tokens"])
            return int(found.get("prompt_tokens") or found["input_tokens"])

        asked = {"messages": HELLO, "max_tokens": 1}
        plain = read("chat/completions", **asked)
        given = read("chat/completions", **asked, reasoning_effort="low")
        assert given > plain + 30
        assert read("responses", input=HELLO[0]["content"], reasoning={"effort": "low"}) == given
        assert read("messages", **asked, output_config={"effort": "low"}) == given


@pytest.mark.parametrize("path", ["chat/completions", "completions", "responses"])
def test_options_of_a_stream_need_one(served: Served, path: str) -> None:
    asked = {
        "model": "kjv",
        "messages": HELLO,
        "prompt": "a",
        "input": "a",
        "stream_options": {"include_usage": True},
    }
    kept = {"chat/completions": "messages", "completions": "prompt", "responses": "input"}[path]
    body = {name: value for name, value in asked.items() if name in ("model", "stream_options", kept)}
    answer = http.post(f"{served.url}/v1/{path}", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "stream_options")


def test_top_p_of_0_is_greedy(client: openai.OpenAI) -> None:
    settings: dict[str, Any] = {"model": "kjv", "messages": HELLO, "max_tokens": 8}
    greedy = client.chat.completions.create(**settings, temperature=0)
    least = client.chat.completions.create(
        **settings, temperature=1, top_p=0, extra_body={"top_k": None, "min_p": None}
    )
    assert least.choices[0].message.content == greedy.choices[0].message.content


def test_a_base_url_without_v1(served: Served) -> None:
    with (
        openai.OpenAI(base_url=served.url, api_key="none", max_retries=0) as client,
        pytest.raises(openai.NotFoundError, match="clients need /v1 in the base URL: /v1/chat/completions"),
    ):
        client.chat.completions.create(model="kjv", messages=HELLO)  # type: ignore[arg-type]
