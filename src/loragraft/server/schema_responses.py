"""The fields of POST /v1/responses: OpenAI's names; a field that is not here is refused by name."""

from __future__ import annotations

from typing import Literal

import msgspec

from loragraft.server.schema import Json, LoraChoice, StreamOptions


class Item(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A message, a call of a function, or its result. Items of an earlier answer may come back as they were."""

    type: str = "message"
    role: Literal["system", "developer", "user", "assistant"] | None = None
    content: str | list[Json] | None = None
    id: str | None = None
    status: str | None = None
    phase: str | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[Json] | None = None
    summary: list[Json] | None = None


class FlatTool(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    type: str
    name: str | None = None
    description: str | None = None
    parameters: Json | None = None
    strict: bool | None = None


class FlatNamedTool(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    type: Literal["function"]
    name: str


class TextFormat(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str = "answer"
    schema: Json | None = None
    description: str | None = None
    strict: bool | None = None


class TextOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    format: TextFormat = msgspec.field(default_factory=TextFormat)
    verbosity: str | None = None


class ResponsesRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/responses."""

    model: str
    input: str | list[Item]
    instructions: str | None = None
    max_output_tokens: int | None = None
    temperature: float | None = 1.0
    top_p: float | None = 1.0
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    tools: list[FlatTool] | None = None
    tool_choice: Literal["none", "auto", "required"] | FlatNamedTool | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    metadata: dict[str, str] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    # Not OpenAI's:
    lora: list[LoraChoice] | None = None
    top_k: int | None = 0
    min_p: float | None = 0.0
    seed: int | None = None
    stop: str | list[str] | None = None
    chat_template_kwargs: Json | None = None
    # Known, and honoured in one way only:
    store: bool | None = None
    previous_response_id: str | None = None
    conversation: str | Json | None = None
    background: bool | None = None
    truncation: str | None = None
    include: list[str] | None = None
    reasoning: Json | None = None
    service_tier: str | None = None
    top_logprobs: int | None = None
    max_tool_calls: int | None = None
    prompt: Json | None = None
