"""POST /v1/responses: OpenAI's newer API for conversations. Nothing is stored: a client sends what was said before."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from loragraft.inference.scheduler.request import Finished, Piece
from loragraft.server import answers
from loragraft.server.answers import Json
from loragraft.server.bodies import read_body
from loragraft.server.conversing import Conversing, constrains, said_and_called, tools_of
from loragraft.server.errors import ApiError, naming_fields, unhonoured
from loragraft.server.running import Reply, Running, complete, receipt, receipt_header, streamed, unless_gone
from loragraft.server.schema import (
    CalledFunction,
    ChatRequest,
    JsonSchema,
    Message,
    NamedFunction,
    NamedTool,
    ResponseFormat,
    Tool,
    ToolCall,
    ToolFunction,
)
from loragraft.server.schema_responses import FlatNamedTool, FlatTool, Item, ResponsesRequest, TextFormat
from loragraft.server.tools import Call, Speech

#: What this API calls the fields of a chat.
_NAMES = {
    "prompt": "input",
    "messages": "input",
    "max_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
}
_TEXTS = ("input_text", "output_text", "text", "refusal")


class Responses:
    """The endpoint, for one served model."""

    def __init__(self, conversing: Conversing) -> None:
        self._conversing = conversing
        self._state = conversing.state

    async def __call__(self, http: HttpRequest) -> Response:
        body = await read_body(http, ResponsesRequest, self._state.limits)
        _check_fields(body)
        chat = _chat_of(body)
        answer = _Answer(body)
        with naming_fields(_NAMES):
            request = await unless_gone(
                self._state.aside.run(self._conversing.request, chat, slow=constrains(chat)), http
            )
            running = Running(self._state, request, body)
            if body.stream:
                return await streamed(running, _events(answer, chat, running), http)
            async with running:
                (reply,) = await unless_gone(complete(running), http)
        answer.add(*said_and_called(reply.text, chat))
        return answers.answer(answer.finished(running, reply.reason), receipt_header(running.adapters))


class _Answer:
    """The response object, as it grows."""

    def __init__(self, body: ResponsesRequest) -> None:
        self.id = answers.new_id("resp_")
        self.output: list[Json] = []
        form = TextFormat() if body.text is None else body.text.format
        self._facts: Json = {
            "id": self.id,
            "object": "response",
            "created_at": answers.now(),
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "model": body.model,
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": (body.reasoning or {}).get("effort"), "summary": None},
            "store": False,
            "temperature": body.temperature,
            "text": {"format": {"type": form.type, **_described_format(form)}},
            "tool_choice": _plain(body.tool_choice) or "auto",
            "tools": [_plain(tool) for tool in body.tools or ()],
            "top_p": body.top_p,
            "truncation": "disabled",
            "usage": None,
            "user": body.user,
        }

    def whole(self, status: str) -> Json:
        return {**self._facts, "status": status, "output": list(self.output)}

    def add(self, said: str, calls: list[Call]) -> None:
        if said or not calls:
            self.output.append(message_item(answers.new_id("msg_"), said))
        self.output += [call_item(call) for call in calls]

    def finished(self, running: Running, reason: str) -> Json:
        assert running.done is not None
        cut = reason == "length"
        used = answers.usage(running.done)
        if cut and self.output:
            self.output[-1]["status"] = "incomplete"
        return {
            **self.whole("incomplete" if cut else "completed"),
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "usage": {
                "input_tokens": used["prompt_tokens"],
                "input_tokens_details": {**used["prompt_tokens_details"], "cache_write_tokens": 0},
                "output_tokens": used["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": used["total_tokens"],
            },
            "loragraft": receipt(running.adapters, running.done),
        }


def message_item(number: str, text: str, status: str = "completed") -> Json:
    return {
        "id": number,
        "type": "message",
        "role": "assistant",
        "status": status,
        "content": [text_part(text)],
    }


def text_part(text: str) -> Json:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def call_item(call: Call) -> Json:
    return {
        "id": answers.new_id("fc_"),
        "type": "function_call",
        "status": "completed",
        "call_id": answers.new_id("call_"),
        "name": call.name,
        "arguments": call.arguments,
    }


async def _events(answer: _Answer, chat: ChatRequest, running: Running) -> AsyncIterator[bytes]:
    """The events of a stream, in OpenAI's order."""
    count = 0

    def event(kind: str, **facts: Any) -> bytes:
        nonlocal count
        count += 1
        return answers.named_event(kind, {"type": kind, "sequence_number": count - 1, **facts})

    number = answers.new_id("msg_")
    place: Json = {"item_id": number, "output_index": 0, "content_index": 0}
    opened = False

    def opening() -> bytes:
        nonlocal opened
        opened = True
        empty = {**message_item(number, "", "in_progress"), "content": []}
        return event("response.output_item.added", output_index=0, item=empty) + event(
            "response.content_part.added", **place, part=text_part("")
        )

    def delta(text: str) -> bytes:
        return event("response.output_text.delta", **place, delta=text, logprobs=[])

    def closing(text: str) -> bytes:
        item = message_item(number, text)
        answer.output.append(item)
        return (
            event("response.output_text.done", **place, text=text, logprobs=[])
            + event("response.content_part.done", **place, part=text_part(text))
            + event("response.output_item.done", output_index=0, item=item)
        )

    def called(call: Call) -> bytes:
        item, index = call_item(call), len(answer.output)
        answer.output.append(item)
        here: Json = {"item_id": item["id"], "output_index": index}
        begun = {**item, "arguments": "", "status": "in_progress"}
        return (
            event("response.output_item.added", output_index=index, item=begun)
            + event("response.function_call_arguments.delta", **here, delta=call.arguments)
            + event("response.function_call_arguments.done", **here, name=call.name, arguments=call.arguments)
            + event("response.output_item.done", output_index=index, item=item)
        )

    try:
        yield event("response.created", response=answer.whole("in_progress")) + event(
            "response.in_progress", response=answer.whole("in_progress")
        )
        reply, speech, told = Reply(), Speech(bool(tools_of(chat))), ""
        async for came in running:
            if isinstance(came, Piece):
                if text := speech.push(came.text):
                    told += text
                    yield (b"" if opened else opening()) + delta(text)
            elif isinstance(came, Finished):
                reply.reason = came.reason
        said, calls = said_and_called(speech.text, chat)
        rest = speech.rest(said)
        if opened or rest or not calls:
            yield (b"" if opened else opening()) + (delta(rest) if rest else b"") + closing(told + rest)
        for call in calls:
            yield called(call)
        whole = answer.finished(running, reply.reason)
        yield event(f"response.{whole['status']}", response=whole)
    except ApiError as error:
        error = error.renamed(_NAMES)
        yield event("error", code=error.code, message=error.message, param=error.param)


# ---- what was asked, as a chat ----


def _chat_of(body: ResponsesRequest) -> ChatRequest:
    messages = [] if body.instructions is None else [Message(role="system", content=body.instructions)]
    if isinstance(body.input, str):
        messages.append(Message(role="user", content=body.input))
    else:
        for number, item in enumerate(body.input):
            _take(messages, item, f"input[{number}]")
    return ChatRequest(
        model=body.model,
        messages=messages,
        max_tokens=body.max_output_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        min_p=body.min_p,
        seed=body.seed,
        stop=body.stop,
        lora=body.lora,
        tools=None if body.tools is None else [_tool(tool) for tool in body.tools],
        tool_choice=(
            NamedTool(type="function", function=NamedFunction(name=body.tool_choice.name))
            if isinstance(body.tool_choice, FlatNamedTool)
            else body.tool_choice
        ),
        parallel_tool_calls=body.parallel_tool_calls,
        response_format=None if body.text is None else _format(body.text.format),
        chat_template_kwargs=body.chat_template_kwargs,
        reasoning_effort=(body.reasoning or {}).get("effort"),
    )


def _take(messages: list[Message], item: Item, param: str) -> None:
    """Add an item to the conversation. Calls belong to the assistant's message before them."""
    match item.type:
        case "message" if item.role is not None:
            messages.append(Message(role=item.role, content=_text(item.content, param)))
        case "function_call" if item.call_id and item.name is not None:
            called = CalledFunction(name=item.name, arguments=item.arguments or "{}")
            if not messages or messages[-1].role != "assistant":
                messages.append(Message(role="assistant"))
            calls = [*(messages[-1].tool_calls or ()), ToolCall(id=item.call_id, function=called)]
            messages[-1] = msgspec.structs.replace(messages[-1], tool_calls=calls)
        case "function_call_output" if item.call_id:
            text = _text(item.output, f"{param}.output")
            messages.append(Message(role="tool", content=text, tool_call_id=item.call_id))
        case "message" | "function_call" | "function_call_output":
            raise ApiError(f"{param}: a {item.type} lacks its role, call_id or name", param=param)
        case _:
            raise unhonoured(
                f"{param}.type", item.type, "items are messages, function calls and their results"
            )


def _text(content: str | list[Json] | None, param: str) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    for part in content:
        if part.get("type") not in _TEXTS:
            raise unhonoured(f"{param}.content.type", part.get("type"), "this model reads text only")
    return "".join(str(part.get("text") or part.get("refusal") or "") for part in content)


def _tool(tool: FlatTool) -> Tool:
    if tool.type != "function" or tool.name is None:
        raise unhonoured("tools.type", tool.type, "tools are functions that the client calls")
    function = ToolFunction(name=tool.name, description=tool.description, parameters=tool.parameters)
    return Tool(type="function", function=function)


def _format(form: TextFormat) -> ResponseFormat:
    schema = JsonSchema(name=form.name, schema=form.schema) if form.type == "json_schema" else None
    return ResponseFormat(type=form.type, json_schema=schema)


def _described_format(form: TextFormat) -> Json:
    return {"name": form.name, "schema": form.schema, "strict": True} if form.type == "json_schema" else {}


def _plain(value: Any) -> Any:
    return json.loads(msgspec.json.encode(value))


def _check_fields(body: ResponsesRequest) -> None:
    """Fields that are known and have one honoured value."""
    if body.stream_options is not None and not body.stream:
        raise ApiError("stream_options: needs stream", param="stream_options")
    if body.store:
        raise unhonoured("store", body.store, "this server stores nothing")
    for name in ("previous_response_id", "conversation", "prompt"):
        if getattr(body, name) is not None:
            raise unhonoured(name, getattr(body, name), "nothing is stored here: send the whole conversation")
    if body.background:
        raise unhonoured("background", body.background, "nothing is stored here")
    if body.truncation not in (None, "disabled"):
        raise unhonoured("truncation", body.truncation, "a conversation is read whole or refused")
    if body.include:
        raise unhonoured("include", body.include, "there is nothing more to include")
    if any(value for name, value in (body.reasoning or {}).items() if name != "effort"):
        raise unhonoured("reasoning", body.reasoning, "pass what the template knows in chat_template_kwargs")
    if body.service_tier not in (None, "auto", "default"):
        raise unhonoured("service_tier", body.service_tier, "there is one tier")
    if body.top_logprobs:
        raise unhonoured("top_logprobs", body.top_logprobs, "ask /v1/chat/completions for logprobs")
    if body.max_tool_calls is not None:
        raise unhonoured("max_tool_calls", body.max_tool_calls, "calls are made by the client")
    if body.text is not None and body.text.verbosity not in (None, "medium"):
        raise unhonoured("text.verbosity", body.text.verbosity, "the model has no such setting")
