"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from loragraft.errors import LoragraftError
from loragraft.inference.scheduler.request import Constraint, Finished, Piece, Request, Scored
from loragraft.server import answers
from loragraft.server.answers import Json
from loragraft.server.bodies import read_body
from loragraft.server.constraints import Grammars
from loragraft.server.errors import ApiError, api_error, unhonoured
from loragraft.server.options import request_of
from loragraft.server.prompts import chat_ids
from loragraft.server.running import Reply, Running, begun, gather, receipt, receipt_header, unless_gone
from loragraft.server.schema import ChatRequest, NamedTool, Tool
from loragraft.server.state import State
from loragraft.server.tools import Call, call_schema, find_calls, with_instruction


class ChatCompletions:
    """The endpoint, for one served model."""

    def __init__(self, state: State, grammars: Grammars) -> None:
        self._state = state
        self._grammars = grammars

    async def __call__(self, http: HttpRequest) -> Response:
        body = await read_body(http, ChatRequest, self._state.limits)
        running = Running(self._state, await self._state.aside.run(self.request, body))
        tools = _tools_of(body)
        if body.stream:
            return await self._stream(body, tools, running, http)
        async with running:
            replies = await unless_gone(_complete(running), http)
        assert running.done is not None
        choices = [self._choice(number, reply, body, tools) for number, reply in enumerate(replies)]
        whole = {
            "id": answers.new_id("chatcmpl"),
            "object": "chat.completion",
            "created": answers.now(),
            "model": body.model,
            "choices": choices,
            "usage": answers.usage(running.done),
            "loragraft": receipt(running.adapters, running.done),
        }
        return answers.answer(whole, receipt_header(running.adapters))

    def request(self, body: ChatRequest) -> Request:
        """The scheduler's request for `body`. Raises ApiError for what is wrong with it. Takes time."""
        state = self._state
        _check_fields(body)
        tools = _tools_of(body)
        if len(body.messages) > state.limits.messages:
            raise ApiError(
                f"messages: found {len(body.messages)}, expected at most {state.limits.messages}",
                param="messages",
            )
        messages, told = body.messages, tools or None
        if tools and not state.model.template_takes_tools:
            messages, told = with_instruction(messages, tools), None
        try:
            prompt = chat_ids(state.model, messages, tools=told, extra=body.chat_template_kwargs)
        except LoragraftError as error:
            raise api_error(error) from None
        most = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
        wanted = (body.top_logprobs or 0) if body.logprobs else None
        return request_of(
            state,
            body,
            prompt,
            max_tokens=most,
            logprobs=wanted,
            constraint=self._constraint(body, tools),
            show_special=bool(tools),
        )

    def _constraint(self, body: ChatRequest, tools: list[Tool]) -> Callable[[], Constraint] | None:
        form = body.response_format
        kinds = [body.grammar is not None, form is not None and form.type != "text", _must_call(body)]
        if sum(kinds) > 1:
            raise ApiError("give one of grammar, response_format and a required tool, not several")
        if body.grammar is not None:
            return self._grammars.grammar(body.grammar)
        if _must_call(body):
            named = body.tool_choice if isinstance(body.tool_choice, NamedTool) else None
            if named is not None and all(tool.function.name != named.function.name for tool in tools):
                raise ApiError(
                    f"tool_choice: no tool {named.function.name!r} among tools", param="tool_choice"
                )
            return self._grammars.json_schema(call_schema(tools, named), "tools")
        if form is None or form.type == "text":
            return None
        if form.type == "json_object":
            return self._grammars.any_object()
        if form.json_schema is None or form.json_schema.schema is None:
            raise ApiError("response_format: json_schema needs a schema", param="response_format")
        return self._grammars.json_schema(form.json_schema.schema, "response_format")

    def _choice(self, number: int, reply: Reply, body: ChatRequest, tools: list[Tool]) -> Json:
        said, calls = self._said_and_called(reply.text, body, tools)
        message: Json = {"role": "assistant", "content": said or (None if calls else ""), "refusal": None}
        if calls:
            message["tool_calls"] = [call.body() for call in calls]
        return {
            "index": number,
            "message": message,
            "logprobs": self._logprobs(reply.tokens) if body.logprobs else None,
            "finish_reason": "tool_calls" if calls else reply.reason,
        }

    @staticmethod
    def _said_and_called(text: str, body: ChatRequest, tools: list[Tool]) -> tuple[str, list[Call]]:
        said, calls = find_calls(text, tools) if tools else (text, [])
        return said, calls[:1] if body.parallel_tool_calls is False else calls

    def _logprobs(self, tokens: list[Scored]) -> Json:
        return {"content": [self._scored(token) for token in tokens], "refusal": None}

    def _scored(self, scored: Scored) -> Json:
        def one(token: int, logprob: float | None) -> Json:
            piece = self._state.model.tokenizer.piece(token, show_special=True)
            return {"token": piece.decode(errors="replace"), "logprob": logprob, "bytes": list(piece)}

        return {**one(scored.token, scored.logprob), "top_logprobs": [one(*each) for each in scored.top]}

    async def _stream(
        self, body: ChatRequest, tools: list[Tool], running: Running, http: HttpRequest
    ) -> Response:
        await begun(running, http)
        events = self._events(body, tools, running)
        return answers.stream(events, receipt_header(running.adapters), running)

    async def _events(self, body: ChatRequest, tools: list[Tool], running: Running) -> AsyncIterator[bytes]:
        head = {
            "id": answers.new_id("chatcmpl"),
            "object": "chat.completion.chunk",
            "created": answers.now(),
            "model": body.model,
        }
        with_usage = body.stream_options is not None and body.stream_options.include_usage

        def chunk(number: int, delta: Json, reason: str | None = None, logprobs: Json | None = None) -> bytes:
            choice = {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
            return answers.event({**head, "choices": [choice], **({"usage": None} if with_usage else {})})

        try:
            for number in range(running.request.choices):
                yield chunk(number, {"role": "assistant", "content": ""})
            # A reply that may turn out to be a call is held back: what of it is text is known at its end.
            held = [Reply() for _ in range(running.request.choices)]
            async for event in running:
                if isinstance(event, Piece):
                    logprobs = self._logprobs(list(event.tokens)) if body.logprobs else None
                    if tools:
                        held[event.choice].text += event.text
                    else:
                        yield chunk(event.choice, {"content": event.text}, logprobs=logprobs)
                elif isinstance(event, Finished):
                    reason: str = event.reason
                    if tools:
                        said, calls = self._said_and_called(held[event.choice].text, body, tools)
                        if said:
                            yield chunk(event.choice, {"content": said})
                        for index, call in enumerate(calls):
                            yield chunk(event.choice, {"tool_calls": [{"index": index, **call.body()}]})
                        reason = "tool_calls" if calls else reason
                    yield chunk(event.choice, {}, reason)
            assert running.done is not None
            last = {**head, "choices": [], "loragraft": receipt(running.adapters, running.done)}
            usage = {"usage": answers.usage(running.done)} if with_usage else {}
            yield answers.event({**last, **usage}) + answers.LAST_EVENT
        except ApiError as error:
            yield answers.event(error.body)


async def _complete(running: Running) -> list[Reply]:
    await running.started()
    return await gather(running)


def _must_call(body: ChatRequest) -> bool:
    return body.tool_choice == "required" or isinstance(body.tool_choice, NamedTool)


def _tools_of(body: ChatRequest) -> list[Tool]:
    if body.tool_choice not in (None, "none") and not body.tools:
        raise ApiError("tool_choice: needs tools", param="tool_choice")
    return [] if body.tool_choice == "none" else list(body.tools or ())


def _check_fields(body: ChatRequest) -> None:
    """Fields that are known and have one honoured value."""
    if body.store:
        raise unhonoured("store", body.store, "this server stores no conversations")
    if body.service_tier not in (None, "auto", "default"):
        raise unhonoured("service_tier", body.service_tier, "there is one tier")
    if body.modalities not in (None, ["text"]):
        raise unhonoured("modalities", body.modalities, "replies are text")
    if body.reasoning_effort not in (None, "none"):
        raise unhonoured(
            "reasoning_effort", body.reasoning_effort, "pass what the template knows in chat_template_kwargs"
        )
    if body.verbosity not in (None, "medium"):
        raise unhonoured("verbosity", body.verbosity, "the model has no such setting")
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError("top_logprobs: needs logprobs", param="top_logprobs")
