"""What a generating request asks for, checked, in the scheduler's terms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from loragraft.arrays import Ids
from loragraft.errors import LoragraftError
from loragraft.inference.sampling import Sampling
from loragraft.inference.scheduler.request import Constraint, Penalties, Request
from loragraft.server.errors import ApiError, api_error
from loragraft.server.schema import Generating
from loragraft.server.state import State


def request_of(
    state: State,
    body: Generating,
    prompt: Ids,
    *,
    max_tokens: int | None,
    logprobs: int | None,
    constraint: Callable[[], Constraint] | None = None,
    show_special: bool = False,
) -> Request:
    """The scheduler's request for `prompt`. Raises ApiError naming the field that is out of range."""
    limits = state.limits
    if body.stream_options is not None and not body.stream:
        raise ApiError("stream_options: needs stream", param="stream_options")
    choices = 1 if body.n is None else body.n
    _within("n", choices, 1, limits.choices)
    stops = [body.stop] if isinstance(body.stop, str) else list(body.stop or ())
    if len(stops) > limits.stops:
        raise ApiError(f"stop: found {len(stops)} texts, expected at most {limits.stops}", param="stop")
    for stop in stops:
        if not 0 < len(stop) <= limits.stop_characters:
            raise ApiError(
                f"stop: found a text of {len(stop)} characters, expected 1 to {limits.stop_characters}",
                param="stop",
            )
    if logprobs is not None:
        _within("top_logprobs", logprobs, 0, limits.top_logprobs)
    room = state.scheduler.context - len(prompt)
    if max_tokens is not None and max_tokens < 0:
        raise ApiError(f"max_tokens: found {max_tokens}, expected 0 or more", param="max_tokens")
    return Request(
        prompt,
        emit=nobody,
        adapters=state.adapters_of(body.model, body.lora),
        max_tokens=room if max_tokens is None else max_tokens,
        choices=choices,
        sampling=_sampling(body),
        penalties=_penalties(state, body),
        stop=tuple(stops),
        logprobs=logprobs,
        constraint=constraint,
        show_special=show_special,
        timeout=limits.seconds,
    )


def nobody(event: object) -> None:
    """Until the request is submitted (`server.running`)."""


def _sampling(body: Generating) -> Sampling:
    try:
        return Sampling(
            temperature=1.0 if body.temperature is None else 0.0 if body.top_p == 0 else body.temperature,
            top_k=body.top_k or 0,
            top_p=body.top_p or 1.0,  # of 0 the likeliest token is left: greedy
            min_p=body.min_p or 0.0,
            seed=None if body.seed is None else _seed(body.seed),
        )
    except LoragraftError as error:
        raise api_error(error) from None


def _seed(given: int) -> int:
    """OpenAI's are 64 bits with a sign."""
    _within("seed", given, -(2**63), 2**64 - 1)
    return given if given >= 0 else given + 2**64


def _penalties(state: State, body: Generating) -> Penalties:
    presence, frequency = body.presence_penalty or 0.0, body.frequency_penalty or 0.0
    _within("presence_penalty", presence, -2, 2)
    _within("frequency_penalty", frequency, -2, 2)
    bias: dict[int, float] = {}
    given = body.logit_bias or {}
    if len(given) > state.limits.biases:
        raise ApiError(
            f"logit_bias: found {len(given)} tokens, expected at most {state.limits.biases}",
            param="logit_bias",
        )
    for token, value in given.items():
        if not (token.isdecimal() and len(token) < 10 and int(token) < state.model.tokenizer.size):
            raise ApiError(
                f"logit_bias: no token {token[:40]!r}, expected an id below {state.model.tokenizer.size}",
                param="logit_bias",
            )
        _within("logit_bias", value, -100, 100)
        bias[int(token)] = float("-inf") if value == -100 else value
    return Penalties(presence, frequency, bias)


def _within(param: str, value: Any, least: float, most: float) -> None:
    if not least <= value <= most:
        raise ApiError(f"{param}: found {value}, expected {least} to {most}", param=param)
