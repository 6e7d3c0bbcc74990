"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import AsyncIterator

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from loragraft.inference.scheduler.request import Finished, Piece, Request, Scored
from loragraft.server import answers
from loragraft.server.answers import Json
from loragraft.server.bodies import read_body
from loragraft.server.constraints import Grammars
from loragraft.server.conversing import Conversing, constrains, said_and_called, tools_of
from loragraft.server.errors import ApiError, naming_fields, unhonoured
from loragraft.server.running import Reply, Running, complete, receipt, receipt_header, streamed, unless_gone
from loragraft.server.schema import ChatRequest
from loragraft.server.state import State
from loragraft.server.tools import Speech


class ChatCompletions:
    """The endpoint, for one served model."""

    def __init__(self, state: State, grammars: Grammars) -> None:
        self._conversing = Conversing(state, grammars)
        self._state = state

    async def __call__(self, http: HttpRequest) -> Response:
        body = await read_body(http, ChatRequest, self._state.limits)
        with naming_fields(_names(body)):
            running = Running(
                self._state,
                await unless_gone(self._state.aside.run(self.request, body, slow=constrains(body)), http),
                body,
            )
            if body.stream:
                return await streamed(running, self._events(body, running), http)
            async with running:
                replies = await unless_gone(complete(running), http)
        assert running.done is not None
        choices = [self._choice(number, reply, body) for number, reply in enumerate(replies)]
        whole = {
            "id": answers.new_id("chatcmpl-"),
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
        _check_fields(body)
        return self._conversing.request(body)

    def _choice(self, number: int, reply: Reply, body: ChatRequest) -> Json:
        said, calls = said_and_called(reply.text, body)
        message: Json = {"role": "assistant", "content": said or (None if calls else ""), "refusal": None}
        if calls:
            message["tool_calls"] = [call.body() for call in calls]
        return {
            "index": number,
            "message": message,
            "logprobs": self._logprobs(reply.tokens) if body.logprobs else None,
            "finish_reason": "tool_calls" if calls else reply.reason,
        }

    def _logprobs(self, tokens: list[Scored]) -> Json:
        return {"content": [self._scored(token) for token in tokens], "refusal": None}

    def _scored(self, scored: Scored) -> Json:
        def one(token: int, logprob: float | None) -> Json:
            piece = self._state.model.tokenizer.piece(token, show_special=True)
            return {"token": piece.decode(errors="replace"), "logprob": logprob, "bytes": list(piece)}

        return {**one(scored.token, scored.logprob), "top_logprobs": [one(*each) for each in scored.top]}

    async def _events(self, body: ChatRequest, running: Running) -> AsyncIterator[bytes]:
        head = {
            "id": answers.new_id("chatcmpl-"),
            "object": "chat.completion.chunk",
            "created": answers.now(),
            "model": body.model,
        }
        with_usage = body.stream_options is not None and body.stream_options.include_usage

        def body_of(
            number: int, delta: Json, reason: str | None = None, logprobs: Json | None = None
        ) -> Json:
            choice = {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
            return {**head, "choices": [choice], **({"usage": None} if with_usage else {})}

        def chunk(number: int, delta: Json, logprobs: Json | None = None) -> bytes:
            return answers.event(body_of(number, delta, None, logprobs))

        tools = tools_of(body)
        speeches = [Speech(bool(tools)) for _ in range(running.request.choices)]
        untold: list[list[Scored]] = [[] for _ in speeches]
        last: Json | None = None

        def told(number: int) -> Json | None:
            """The probabilities of tokens that came since the last chunk."""
            tokens, untold[number] = untold[number], []
            return self._logprobs(tokens) if body.logprobs and tokens else None

        try:
            for number in range(running.request.choices):
                yield chunk(number, {"role": "assistant", "content": ""})
            async for event in running:
                if isinstance(event, Piece):
                    number = event.choice
                    untold[number] += event.tokens
                    text = speeches[number].push(event.text)
                    if text or not tools:
                        yield chunk(number, {"content": text}, told(number))
                elif isinstance(event, Finished):
                    number, reason = event.choice, str(event.reason)
                    said, calls = said_and_called(speeches[number].text, body)
                    rest = speeches[number].rest(said)
                    if rest or (untold[number] and body.logprobs and not calls):
                        yield chunk(number, {"content": rest}, told(number))
                    for index, call in enumerate(calls):
                        yield chunk(number, {"tool_calls": [{"index": index, **call.body()}]}, told(number))
                    reason = "tool_calls" if calls else reason
                    if last is not None:
                        yield answers.event(last)
                    last = body_of(event.choice, {}, reason)  # kept for what ran, which is known in a moment
            assert running.done is not None
            assert last is not None
            yield answers.ending(
                last, head, running.done, receipt(running.adapters, running.done), with_usage
            )
        except ApiError as error:
            yield answers.event(error.renamed(_names(body)).body)


def _names(body: ChatRequest) -> dict[str, str]:
    """What the client called our fields."""
    most = {} if body.max_completion_tokens is None else {"max_tokens": "max_completion_tokens"}
    return {"prompt": "messages", **most}


#: Fields that are not honoured, and why.
_ELSEWHERE = {
    "audio": "replies are text",
    "prediction": "tokens are guessed from the prompt",
    "web_search_options": "this server searches nothing",
    "functions": "they are called tools now",
    "function_call": "it is called tool_choice now",
}


def _check_fields(body: ChatRequest) -> None:
    """Fields that are known and have one honoured value."""
    if body.store:
        raise unhonoured("store", body.store, "this server stores no conversations")
    if body.service_tier not in (None, "auto", "default"):
        raise unhonoured("service_tier", body.service_tier, "there is one tier")
    if body.modalities not in (None, ["text"]):
        raise unhonoured("modalities", body.modalities, "replies are text")
    if body.verbosity not in (None, "medium"):
        raise unhonoured("verbosity", body.verbosity, "the model has no such setting")
    for name, instead in _ELSEWHERE.items():
        if getattr(body, name) is not None:
            raise unhonoured(name, getattr(body, name), instead)
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError("top_logprobs: needs logprobs", param="top_logprobs")
