"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's API for conversations."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

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
from loragraft.server.schema_messages import (
    Block,
    ClaudeTool,
    CountRequest,
    MessagesRequest,
    ToolChoice,
    Turn,
)
from loragraft.server.tools import Call, Speech

#: What this API calls the fields of a chat.
_NAMES = {
    "prompt": "messages",
    "stop": "stop_sequences",
    "response_format": "output_config.format",
    "reasoning_effort": "output_config.effort",
}


class Messages:
    """The endpoints, for one served model."""

    def __init__(self, conversing: Conversing) -> None:
        self._conversing = conversing
        self._state = conversing.state

    async def __call__(self, http: HttpRequest) -> Response:
        body = await read_body(http, MessagesRequest, self._state.limits)
        _check_fields(body)
        chat, begun = _chat_of(body)
        chat.max_tokens, chat.stop, chat.lora = body.max_tokens, body.stop_sequences, body.lora
        chat.temperature, chat.top_p, chat.top_k = body.temperature, body.top_p, body.top_k or 0
        chat.min_p, chat.seed = body.min_p, body.seed
        if body.output_config is not None and body.output_config.format is not None:
            schema = JsonSchema(name="answer", schema=body.output_config.format.schema)
            chat.response_format = ResponseFormat(type="json_schema", json_schema=schema)
        number = answers.new_id("msg_")
        read = partial(self._conversing.request, begun=begun)
        with naming_fields(_NAMES):
            running = Running(
                self._state,
                await unless_gone(self._state.aside.run(read, chat, slow=constrains(chat)), http),
                body,
            )
            if body.stream:
                return await streamed(running, _events(number, body, chat, running), http)
            async with running:
                (reply,) = await unless_gone(complete(running), http)
        assert running.done is not None
        said, calls = said_and_called(reply.text, chat)
        content = [{"type": "text", "text": said}] if said or not calls else []
        whole = {
            **_message(number, body, running, [*content, *(_used(call) for call in calls)]),
            "stop_reason": _reason(reply, calls),
            "stop_sequence": reply.stop_text,
            "loragraft": receipt(running.adapters, running.done),
        }
        whole["usage"]["output_tokens"] = running.done.completion_tokens
        return answers.answer(whole, receipt_header(running.adapters))

    async def count(self, http: HttpRequest) -> Response:
        body = await read_body(http, CountRequest, self._state.limits)
        self._state.adapters_of(body.model, None)
        chat, begun = _chat_of(body)
        read = partial(self._conversing.request, begun=begun)
        with naming_fields(_NAMES):
            request = await unless_gone(self._state.aside.run(read, chat, slow=constrains(chat)), http)
        return answers.answer({"input_tokens": len(request.prompt)})


def _message(number: str, body: MessagesRequest, running: Running, content: list[Json]) -> Json:
    prompt, cached = len(running.request.prompt), running.cached
    return {
        "id": number,
        "type": "message",
        "role": "assistant",
        "model": body.model,
        "content": content,
        "stop_reason": None,
        "stop_sequence": None,
        "usage": {
            "input_tokens": prompt - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": 0,
        },
    }


def _used(call: Call) -> Json:
    arguments = json.loads(call.arguments)
    return {"type": "tool_use", "id": answers.new_id("toolu_"), "name": call.name, "input": arguments}


def _reason(reply: Reply, calls: list[Call]) -> str:
    if calls:
        return "tool_use"
    if reply.stop_text is not None:
        return "stop_sequence"
    return "end_turn" if reply.reason == "stop" else "max_tokens"


async def _events(
    number: str, body: MessagesRequest, chat: ChatRequest, running: Running
) -> AsyncIterator[bytes]:
    """The events of a stream, in Anthropic's order."""

    def event(kind: str, **facts: Any) -> bytes:
        return answers.named_event(kind, {"type": kind, **facts})

    def begin(index: int, block: Json) -> bytes:
        return event("content_block_start", index=index, content_block=block)

    def delta(index: int, **change: str) -> bytes:
        return event("content_block_delta", index=index, delta=change)

    try:
        yield event("message_start", message=_message(number, body, running, [])) + event("ping")
        reply, opened, speech = Reply(), False, Speech(bool(tools_of(chat)))
        async for came in running:
            if isinstance(came, Piece):
                if text := speech.push(came.text):
                    first = b"" if opened else begin(0, {"type": "text", "text": ""})
                    opened = True
                    yield first + delta(0, type="text_delta", text=text)
            elif isinstance(came, Finished):
                reply.reason, reply.stop_text = came.reason, came.stop_text
        said, calls = said_and_called(speech.text, chat)
        index, rest = 0, speech.rest(said)
        if opened or rest or not calls:
            first = b"" if opened else begin(0, {"type": "text", "text": ""})
            last = delta(0, type="text_delta", text=rest) if rest else b""
            yield first + last + event("content_block_stop", index=0)
            index = 1
        for at, call in enumerate(calls, index):
            yield (
                begin(at, {**_used(call), "input": {}})
                + delta(at, type="input_json_delta", partial_json=call.arguments)
                + event("content_block_stop", index=at)
            )
        assert running.done is not None
        yield event(
            "message_delta",
            delta={"stop_reason": _reason(reply, calls), "stop_sequence": reply.stop_text},
            usage={"output_tokens": running.done.completion_tokens},
            loragraft=receipt(running.adapters, running.done),
        ) + event("message_stop")
    except ApiError as error:
        yield answers.named_event("error", error.renamed(_NAMES).anthropic)


# ---- what was asked, as a chat ----


def _chat_of(body: CountRequest) -> tuple[ChatRequest, str]:
    """The conversation, and how the reply begins: what the assistant's own message at its end says."""
    messages = [] if body.system is None else [Message(role="system", content=_text(body.system, "system"))]
    turns, begun = list(body.messages), ""
    if turns and turns[-1].role == "assistant":
        begun = _text(turns.pop().content, "messages")
    for turn in turns:
        _take(messages, turn)
    choice = body.tool_choice or ToolChoice(type="auto")
    if choice.type == "tool" and choice.name is None:
        raise ApiError("tool_choice: name is missing", param="tool_choice")
    kinds: dict[str, Any] = {"auto": None, "none": "none", "any": "required"}
    named = NamedTool(type="function", function=NamedFunction(name=choice.name or ""))
    return (
        ChatRequest(
            model=body.model,
            messages=messages,
            tools=None if body.tools is None else [_tool(tool) for tool in body.tools],
            tool_choice=kinds.get(choice.type, named),
            parallel_tool_calls=not choice.disable_parallel_tool_use,
            chat_template_kwargs=body.chat_template_kwargs,
            reasoning_effort=None if body.output_config is None else body.output_config.effort,
        ),
        begun,
    )


def _take(messages: list[Message], turn: Turn) -> None:
    if isinstance(turn.content, str):
        messages.append(Message(role=turn.role, content=turn.content))
        return
    calls: list[ToolCall] = []
    texts: list[Block] = []
    for block in turn.content:
        if block.type == "tool_result" and block.tool_use_id:
            text = _text(block.content or "", "messages.content")
            messages.append(Message(role="tool", content=text, tool_call_id=block.tool_use_id))
        elif block.type == "tool_use" and block.id and block.name:
            function = CalledFunction(name=block.name, arguments=json.dumps(block.input or {}))
            calls.append(ToolCall(id=block.id, function=function))
        else:
            texts.append(block)
    if texts or calls:
        text = _text(texts, "messages.content")
        messages.append(Message(role=turn.role, content=text, tool_calls=calls or None))


def _text(content: str | list[Block], param: str) -> str:
    if isinstance(content, str):
        return content
    for block in content:
        if block.type != "text":
            raise unhonoured(f"{param}.type", block.type, "this model reads text only")
    return "".join(block.text or "" for block in content)


def _tool(tool: ClaudeTool) -> Tool:
    if tool.type not in (None, "custom") or tool.input_schema is None:
        raise unhonoured(
            "tools.type", tool.type, "tools are functions that the client calls, with an input_schema"
        )
    function = ToolFunction(name=tool.name, description=tool.description, parameters=tool.input_schema)
    return Tool(type="function", function=function)


def _check_fields(body: MessagesRequest) -> None:
    """Fields that are known and have one honoured value."""
    if body.thinking is not None and body.thinking.get("type") != "disabled":
        raise unhonoured("thinking", body.thinking, "pass what the template knows in chat_template_kwargs")
    if body.service_tier not in (None, "auto", "standard_only"):
        raise unhonoured("service_tier", body.service_tier, "there is one tier")
    if body.max_tokens < 1:
        raise ApiError(f"max_tokens: found {body.max_tokens}, expected 1 or more", param="max_tokens")
