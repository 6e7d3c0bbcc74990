"""Calling functions: what the model is told about them, and finding its calls in what it wrote.

A model whose template takes `tools` is told through it. For others the functions are described in a system message.
Calls are read in the forms that open models use: `<tool_call>{...}</tool_call>` (Hermes, Qwen), `[TOOL_CALLS][...]`
(Mistral), `<|python_tag|>{...}` and a bare object with "name" and "arguments" or "parameters" (Llama 3).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from loragraft.server.answers import new_id
from loragraft.server.schema import Message, NamedTool, Tool, ToolCall

_OPENING, _CLOSING = "<tool_call>", "</tool_call>"
#: What a call begins with, wherever it stands in a reply.
_SIGNS = (_OPENING, "[TOOL_CALLS]", "<|python_tag|>")
_INSTRUCTION = (
    "You can call these functions, given as JSON:\n{functions}\n"
    'To call one, answer with nothing but <tool_call>{{"name": NAME, "arguments": {{...}}}}</tool_call>.'
)


@dataclass(frozen=True, slots=True)
class Call:
    name: str
    arguments: str
    """JSON, as OpenAI's API has it."""

    def body(self) -> dict[str, Any]:
        return {
            "id": new_id("call_"),
            "type": "function",
            "function": {"name": self.name, "arguments": self.arguments},
        }


def with_instruction(messages: Sequence[Message], tools: Sequence[Tool]) -> list[Message]:
    """The conversation with a system message that describes the functions, and earlier calls as text: for a model
    whose template does not take tools."""
    described = [
        {
            "name": tool.function.name,
            "description": tool.function.description or "",
            "parameters": tool.function.parameters or {},
        }
        for tool in tools
    ]
    instruction = _INSTRUCTION.format(functions=json.dumps(described))
    plain = [_as_text(message) for message in messages]
    if plain and plain[0].role in ("system", "developer") and isinstance(plain[0].content, str):
        first = Message(role="system", content=f"{plain[0].content}\n\n{instruction}")
        return [first, *plain[1:]]
    return [Message(role="system", content=instruction), *plain]


def _as_text(message: Message) -> Message:
    if message.role == "tool":
        return Message(role="user", content=f"<tool_response>{message.content}</tool_response>")
    if message.tool_calls:
        said = message.content if isinstance(message.content, str) else ""
        return Message(role="assistant", content=said + "".join(map(_written, message.tool_calls)))
    return message


def _written(call: ToolCall) -> str:
    name, arguments = json.dumps(call.function.name), call.function.arguments
    return f'<tool_call>{{"name": {name}, "arguments": {arguments}}}</tool_call>'


def call_schema(tools: Sequence[Tool], choice: NamedTool | None) -> dict[str, Any]:
    """What a reply must be that has to call a function: `{"name": ..., "arguments": {...}}` of one of the tools."""
    wanted = [tool for tool in tools if choice is None or tool.function.name == choice.function.name]
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": tool.function.name},
                "arguments": tool.function.parameters or {"type": "object"},
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for tool in wanted
    ]
    return calls[0] if len(calls) == 1 else {"anyOf": calls}


def find_calls(text: str, tools: Sequence[Tool]) -> tuple[str, list[Call]]:
    """What was said beside calls, and the calls of known tools. A reply without a call stays as it is."""
    names = {tool.function.name for tool in tools}
    said, *tagged = text.split(_OPENING)
    if tagged:
        parts = [one.partition(_CLOSING) for one in tagged]
        calls = [call for body, _, _ in parts for call in _calls_in(body, names)]
        if calls:
            return (said + "".join(rest for _, _, rest in parts)).strip(), calls
    for opening in _SIGNS[1:]:
        said, sign, body = text.partition(opening)
        if sign and (calls := _calls_in(body, names)):
            return said.strip(), calls
    calls = _calls_in(text, names)
    return ("", calls) if calls else (text, [])


def _calls_in(text: str, names: set[str]) -> list[Call]:
    try:
        value, _ = json.JSONDecoder().raw_decode(text.strip())
    except (ValueError, RecursionError):
        return []
    calls = []
    for item in value if isinstance(value, list) else [value]:
        if not isinstance(item, dict) or item.get("name") not in names:
            return []
        arguments = item.get("arguments", item.get("parameters", {}))
        calls.append(Call(item["name"], arguments if isinstance(arguments, str) else json.dumps(arguments)))
    return calls


class Speech:
    """A reply as it comes: what of it can be sent, while it may still turn out to call a function."""

    def __init__(self, tools: bool) -> None:
        self.text = ""
        self._tools = tools
        self._sent = 0

    def push(self, text: str) -> str:
        """Take more of the reply. What was not given yet and is certain to be said, not called."""
        self.text += text
        end = len(self.text)
        if self._tools:
            if self.text.lstrip()[:1] in ("", "{", "["):
                return ""  # a call may be nothing but JSON
            found = [at for sign in _SIGNS if (at := self.text.find(sign, self._sent)) >= 0]
            end = min(found) if found else end - _begun(self.text)
            end = len(self.text[:end].rstrip())  # find_calls drops the white space before a call
        new = self.text[self._sent : end]
        self._sent = max(self._sent, end)
        return new

    def rest(self, said: str) -> str:
        """Of `said` (`find_calls` of the whole text), what was not given."""
        given = self.text[: self._sent]
        return said.removeprefix(given if said.startswith(given) else given.lstrip())


def _begun(text: str) -> int:
    """How many characters at the end may be the beginning of a sign."""
    lengths = range(min(len(text), max(map(len, _SIGNS)) - 1), 0, -1)
    return next((n for n in lengths if any(sign.startswith(text[-n:]) for sign in _SIGNS)), 0)
