"""From what a client says to the tokens that the model reads.

Texts of control tokens in a message (`<|im_end|>`) are text: a user cannot end their own turn or begin another's. The
template's own control tokens are tokens. To tell them apart, a mark that occurs nowhere is put inside every such text
before the template is applied; the result is cut at the marks, and each part is tokenized by itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from loragraft.arrays import Ids
from loragraft.errors import ContextError, LoragraftError
from loragraft.inference.model import Model
from loragraft.server.errors import ApiError, unhonoured
from loragraft.server.schema import Message, Tool


def chat_ids(
    model: Model,
    messages: Sequence[Message],
    *,
    tools: Sequence[Tool] | None = None,
    extra: Mapping[str, Any] | None = None,
    begun: str = "",
) -> Ids:
    """The tokens of a conversation under the model's chat template, up to where its reply begins, and of what it
    begins with.

    Raises ApiError for content that is not text, LoragraftError for messages that the template refuses.
    """
    if not messages:
        raise ApiError("messages: found none, expected at least one", param="messages")
    said = [_plain(message) for message in messages]
    described = None if tools is None else [_described(tool) for tool in tools]
    control = model.tokenizer.control_texts
    mark = _unused_mark(json.dumps([said, described, extra], ensure_ascii=False))
    text = model.chat_text(
        _marked(said, control, mark),
        tools=_marked(described, control, mark),
        extra=_marked(extra, control, mark),
    )
    _check_length(model, text)
    ids = [model.tokenize(part, add_special=False, parse_special=True) for part in text.split(mark)]
    if begun:
        ids.append(model.tokenize(begun, add_special=False))
    return model.with_bos(np.concatenate(ids))


def text_ids(model: Model, prompt: str) -> Ids:
    """The tokens of a plain prompt. Texts of control tokens in it count as these tokens, as in llama-server: whoever
    calls /v1/completions writes the template."""
    _check_length(model, prompt)
    return model.tokenize(prompt, parse_special=True)


def _check_length(model: Model, text: str) -> None:
    """Raises LoragraftError for a text that cannot have as few tokens as there is room for: finding them takes seconds
    for some megabytes, in which nobody else's are found."""
    size, most = len(text.encode(errors="replace")), model.context_length * model.tokenizer.longest_piece
    if size > most:
        raise ContextError(
            "prompt", "longer than the model's context", found=f"{size} bytes", expected=f"at most {most}"
        )


def given_ids(model: Model, ids: Sequence[int], param: str) -> Ids:
    """A prompt that came as tokens. Raises ApiError for an id outside of the vocabulary."""
    size = model.tokenizer.size
    wrong = [token for token in ids if not 0 <= token < size]
    if wrong:
        raise ApiError(f"{param}: found token {wrong[0]}, expected 0 to {size - 1}", param=param)
    return np.array(ids, np.int32)


def _plain(message: Message) -> dict[str, Any]:
    """A message as templates expect it."""
    plain: dict[str, Any] = {"role": "system" if message.role == "developer" else message.role}
    content = message.content
    if isinstance(content, list):
        for part in content:
            if part.type not in ("text", "refusal"):
                raise unhonoured("messages.content.type", part.type, "this model reads text only")
        content = "".join(part.text or part.refusal or "" for part in content)
    if content is None and message.role != "assistant":
        raise ApiError(
            f"messages.content: found none in a message of the role {message.role}, expected a text",
            param="messages.content",
        )
    plain["content"] = "" if content is None else content
    if message.audio is not None or message.function_call is not None:
        raise unhonoured("messages", "audio or function_call", "this field is not supported")
    if message.name is not None:
        plain["name"] = message.name
    if message.tool_call_id is not None:
        plain["tool_call_id"] = message.tool_call_id
    if message.reasoning_content is not None:
        plain["reasoning_content"] = message.reasoning_content
    if message.tool_calls:
        plain["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.function.name, "arguments": _arguments(call.function.arguments)},
            }
            for call in message.tool_calls
        ]
    return plain


def _arguments(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _described(tool: Tool) -> dict[str, Any]:
    function = {"name": tool.function.name, "description": tool.function.description or ""}
    return {"type": "function", "function": {**function, "parameters": tool.function.parameters or {}}}


def _unused_mark(text: str) -> str:
    """A character of Unicode's private use area that the text does not contain."""
    for point in range(0xE000, 0xF8FF):
        if (mark := chr(point)) not in text:
            return mark
    raise LoragraftError("messages", "use every private character of Unicode")


def _marked(value: Any, control: Sequence[str], mark: str) -> Any:
    """`value` with the mark behind the first character of each control token's text in it."""
    if isinstance(value, str):
        for text in control:
            if text in value:
                value = value.replace(text, text[0] + mark + text[1:])
        return value
    if isinstance(value, list):
        return [_marked(item, control, mark) for item in value]
    if isinstance(value, dict):
        return {_marked(key, control, mark): _marked(item, control, mark) for key, item in value.items()}
    return value
