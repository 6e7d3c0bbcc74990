"""The fields of POST /v1/messages: Anthropic's names; a field that is not here is refused by name."""

from __future__ import annotations

from typing import Literal

import msgspec

from loragraft.server.schema import Json, LoraChoice


class Block(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A part of a message."""

    type: str
    text: str | None = None
    citations: list[Json] | None = None
    cache_control: Json | None = None
    id: str | None = None
    name: str | None = None
    input: Json | None = None
    caller: Json | None = None
    tool_use_id: str | None = None
    content: str | list[Block] | None = None
    is_error: bool | None = None
    source: Json | None = None
    title: str | None = None
    context: str | None = None
    thinking: str | None = None
    signature: str | None = None
    data: str | None = None


class Turn(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class ClaudeTool(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    name: str
    input_schema: Json | None = None
    description: str | None = None
    type: str | None = None
    cache_control: Json | None = None
    strict: bool | None = None


class ToolChoice(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool = False


class CountRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/messages/count_tokens."""

    model: str
    messages: list[Turn]
    system: str | list[Block] | None = None
    tools: list[ClaudeTool] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Json | None = None
    output_config: OutputConfig | None = None
    cache_control: Json | None = None
    chat_template_kwargs: Json | None = None


class OutputFormat(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    type: Literal["json_schema"]
    schema: Json


class OutputConfig(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    format: OutputFormat | None = None
    effort: str | None = None


class MessagesRequest(CountRequest, kw_only=True, forbid_unknown_fields=True):
    """POST /v1/messages."""

    max_tokens: int
    temperature: float | None = 1.0
    top_p: float | None = 1.0
    top_k: int | None = None
    stop_sequences: list[str] | None = None
    stream: bool | None = False
    metadata: Json | None = None
    service_tier: str | None = None
    # Not Anthropic's:
    lora: list[LoraChoice] | None = None
    min_p: float | None = 0.0
    seed: int | None = None
