"""POST /v1/completions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from itertools import accumulate

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from loragraft.arrays import Ids
from loragraft.errors import LoragraftError
from loragraft.inference.scheduler.request import Done, Finished, Piece, Request, Scored
from loragraft.server import answers
from loragraft.server.answers import Json
from loragraft.server.bodies import read_body
from loragraft.server.constraints import Grammars
from loragraft.server.errors import ApiError, api_error, naming_fields, unhonoured
from loragraft.server.options import request_of
from loragraft.server.prompts import given_ids, text_ids
from loragraft.server.running import Reply, Running, gather, receipt, receipt_header, streamed, unless_gone
from loragraft.server.schema import CompletionRequest, Prompts
from loragraft.server.state import State

_DEFAULT_TOKENS = 16  # OpenAI's
#: What this API calls our fields.
_NAMES = {"top_logprobs": "logprobs"}


class Completions:
    """The endpoint, for one served model."""

    def __init__(self, state: State, grammars: Grammars) -> None:
        self._state = state
        self._grammars = grammars

    async def __call__(self, http: HttpRequest) -> Response:
        body = await read_body(http, CompletionRequest, self._state.limits)
        with naming_fields(_NAMES):
            requests = await unless_gone(
                self._state.aside.run(self.requests, body, slow=body.grammar is not None), http
            )
            running = [Running(self._state, request, body) for request in requests]
            prompts = [request.prompt for request in requests]
            if body.stream:
                return await self._stream(body, prompts, running, http)
            replies = await self._all(running, http)
        choices = [
            self._choice(number * each.request.choices + index, reply, body, ids)
            for number, (each, several, ids) in enumerate(zip(running, replies, prompts, strict=True))
            for index, reply in enumerate(several)
        ]
        first = running[0]
        whole = {
            "id": answers.new_id("cmpl-"),
            "object": "text_completion",
            "created": answers.now(),
            "model": body.model,
            "choices": choices,
            "usage": _usage([each.done for each in running if each.done is not None]),
            "loragraft": receipt(first.adapters, first.done),
        }
        return answers.answer(whole, receipt_header(first.adapters))

    async def _all(self, running: Sequence[Running], http: HttpRequest) -> list[list[Reply]]:
        """All prompts at once: they share batches."""
        async with AsyncExitStack() as stack:
            for each in running:
                await stack.enter_async_context(each)
            results: list[list[Reply]] = []

            async def collect() -> None:
                for each in running:
                    await each.started()
                    results.append(await gather(each))

            await unless_gone(collect(), http)
            return results

    def requests(self, body: CompletionRequest) -> list[Request]:
        """The scheduler's requests for `body`, one for each prompt. Raises ApiError for what is wrong with it. Takes
        time."""
        _check_fields(body)
        constraint = None if body.grammar is None else self._grammars.grammar(body.grammar)
        most = _DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens
        return [
            request_of(
                self._state, body, prompt, max_tokens=most, logprobs=body.logprobs, constraint=constraint
            )
            for prompt in prompts_of(self._state, body.prompt, "prompt")
        ]

    def _choice(self, index: int, reply: Reply, body: CompletionRequest, prompt: Ids) -> Json:
        text = self._echoed(body, prompt) + reply.text
        logprobs = None if body.logprobs is None else self._logprobs(reply.tokens)
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reply.reason}

    def _echoed(self, body: CompletionRequest, prompt: Ids) -> str:
        return self._state.model.detokenize(prompt) if body.echo else ""

    def _logprobs(self, tokens: Sequence[Scored], at: int = 0) -> Json:
        def text(token: int) -> str:
            return self._state.model.tokenizer.piece(token, show_special=True).decode(errors="replace")

        texts = [text(scored.token) for scored in tokens]
        offsets = list(accumulate(map(len, texts), initial=at))[:-1]
        return {
            "tokens": texts,
            "token_logprobs": [scored.logprob for scored in tokens],
            "top_logprobs": [{text(t): p for t, p in scored.top} for scored in tokens],
            "text_offset": offsets,
        }

    async def _stream(
        self, body: CompletionRequest, prompts: Sequence[Ids], running: Sequence[Running], http: HttpRequest
    ) -> Response:
        if len(running) != 1:
            raise ApiError("prompt: one prompt can be streamed, found several", param="prompt")
        (only,) = running
        return await streamed(only, self._events(body, prompts[0], only), http)

    async def _events(self, body: CompletionRequest, prompt: Ids, running: Running) -> AsyncIterator[bytes]:
        head = {
            "id": answers.new_id("cmpl-"),
            "object": "text_completion",
            "created": answers.now(),
            "model": body.model,
        }

        def body_of(index: int, text: str, reason: str | None = None, logprobs: Json | None = None) -> Json:
            choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
            return {**head, "choices": [choice]}

        def chunk(index: int, text: str, logprobs: Json | None = None) -> bytes:
            return answers.event(body_of(index, text, None, logprobs))

        last: Json | None = None
        lengths = [0] * running.request.choices
        try:
            if echoed := self._echoed(body, prompt):
                for index in range(running.request.choices):
                    yield chunk(index, echoed)
            async for event in running:
                if isinstance(event, Piece):
                    logprobs = None
                    if body.logprobs is not None:
                        logprobs = self._logprobs(event.tokens, lengths[event.choice])
                        lengths[event.choice] += sum(map(len, logprobs["tokens"]))
                    yield chunk(event.choice, event.text, logprobs=logprobs)
                elif isinstance(event, Finished):
                    if last is not None:
                        yield answers.event(last)
                    last = body_of(
                        event.choice, "", event.reason
                    )  # kept for what ran, which is known in a moment
            assert running.done is not None
            assert last is not None
            with_usage = body.stream_options is not None and body.stream_options.include_usage
            yield answers.ending(
                last, head, running.done, receipt(running.adapters, running.done), with_usage
            )
        except ApiError as error:
            yield answers.event(error.body)


def prompts_of(state: State, given: Prompts, param: str, most: int | None = None) -> list[Ids]:
    """The prompts of a request: texts or lists of tokens, one or several."""
    try:
        return _prompts_of(state, given, param, state.limits.prompts if most is None else most)
    except LoragraftError as error:
        raise api_error(error) from None


def _prompts_of(state: State, given: Prompts, param: str, most: int) -> list[Ids]:
    if isinstance(given, str):
        return [text_ids(state.model, given)]
    if not given:
        raise ApiError(f"{param}: found none, expected at least one", param=param)
    tokens = [item for item in given if isinstance(item, int)]
    if tokens:
        if len(tokens) < len(given):
            raise ApiError(f"{param}: found tokens among other prompts", param=param)
        return [given_ids(state.model, tokens, param)]
    if len(given) > most:
        raise ApiError(f"{param}: found {len(given)} prompts, expected at most {most}", param=param)
    return [
        text_ids(state.model, item) if isinstance(item, str) else given_ids(state.model, item, param)
        for item in given
        if not isinstance(item, int)
    ]


def _usage(done: Sequence[Done]) -> Json:
    # A prompt is counted once, however many choices were made of it.
    each = [answers.usage(one) for one in done]
    total = {
        name: sum(one[name] for one in each)
        for name in ("prompt_tokens", "completion_tokens", "total_tokens")
    }
    return {**total, "prompt_tokens_details": {"cached_tokens": sum(one.cached_tokens for one in done)}}


def _check_fields(body: CompletionRequest) -> None:
    if body.best_of not in (None, body.n or 1):
        raise unhonoured("best_of", body.best_of, "every choice that is made is returned: use n")
    if body.echo and body.logprobs is not None:
        raise unhonoured("logprobs", body.logprobs, "those of the prompt are not given: leave out echo")
    if body.suffix is not None:
        raise unhonoured("suffix", body.suffix, "the model continues text, it does not fill in")
