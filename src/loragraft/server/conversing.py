"""From a conversation, by whichever API it came, to what the scheduler is asked; and what the reply says and calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from loragraft.errors import LoragraftError
from loragraft.inference.scheduler.request import Constraint, Request
from loragraft.server.constraints import Grammars
from loragraft.server.errors import ApiError, api_error, unhonoured
from loragraft.server.options import request_of
from loragraft.server.prompts import chat_ids
from loragraft.server.schema import ChatRequest, NamedTool, Tool
from loragraft.server.state import State
from loragraft.server.tools import Call, call_schema, find_calls, with_instruction


class Conversing:
    """For one served model."""

    def __init__(self, state: State, grammars: Grammars) -> None:
        self.state = state
        self._grammars = grammars

    def request(self, body: ChatRequest, *, begun: str = "") -> Request:
        """What the scheduler is asked. `begun`: how the reply begins, which the model continues.

        Raises ApiError for what cannot be honoured. Takes time.
        """
        if not self.state.model.has_template:
            raise ApiError(
                "messages: the model has no chat template; send a prompt to /v1/completions", param="messages"
            )
        tools = tools_of(body)
        constraint = self._constraint(body, tools)
        state = self.state
        if len(body.messages) > state.limits.messages:
            raise ApiError(
                f"messages: found {len(body.messages)}, expected at most {state.limits.messages}",
                param="messages",
            )
        messages, told = body.messages, tools or None
        if tools and not state.model.template_reads("tools"):
            messages, told = with_instruction(messages, tools), None
        try:
            prompt = chat_ids(state.model, messages, tools=told, extra=self._variables(body), begun=begun)
        except LoragraftError as error:
            raise api_error(error) from None
        most = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
        return request_of(
            state,
            body,
            prompt,
            max_tokens=most,
            logprobs=(body.top_logprobs or 0) if body.logprobs else None,
            constraint=constraint,
            show_special=bool(tools),
        )

    def _variables(self, body: ChatRequest) -> dict[str, Any] | None:
        """The template's own: those of the client, and the effort of reasoning where the template reads it."""
        effort, given = body.reasoning_effort, body.chat_template_kwargs
        if effort is not None and self.state.model.template_reads("reasoning_effort"):
            return {"reasoning_effort": effort, **(given or {})}
        if effort not in (None, "none"):
            raise unhonoured(
                "reasoning_effort",
                effort,
                "the model's template does not read it; pass what it reads in chat_template_kwargs",
            )
        return given

    def _constraint(self, body: ChatRequest, tools: list[Tool]) -> Callable[[], Constraint] | None:
        form, must_call = body.response_format, _must_call(body)
        kinds = [body.grammar is not None, form is not None and form.type != "text", must_call]
        if sum(kinds) > 1:
            first = "grammar" if body.grammar is not None else "response_format"
            others = "response_format or a tool" if body.grammar is not None else "a tool"
            raise ApiError(f"{first}: leave it out, or {others} that must be called", param=first)
        if body.grammar is not None:
            return self._grammars.grammar(body.grammar)
        if must_call:
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


def constrains(body: ChatRequest) -> bool:
    """Whether a grammar must be compiled for it."""
    return body.grammar is not None or _must_call(body) or _form_of(body) != "text"


def _form_of(body: ChatRequest) -> str:
    return "text" if body.response_format is None else body.response_format.type


def said_and_called(text: str, body: ChatRequest) -> tuple[str, list[Call]]:
    """What a reply says beside calls of tools, and the calls."""
    tools = tools_of(body)
    said, calls = find_calls(text, tools) if tools else (text, [])
    return said, calls[:1] if body.parallel_tool_calls is False else calls


def tools_of(body: ChatRequest) -> list[Tool]:
    """The tools that may be called."""
    if body.tool_choice not in (None, "none") and not body.tools:
        raise ApiError("tool_choice: needs tools", param="tool_choice")
    return [] if body.tool_choice == "none" else list(body.tools or ())


def _must_call(body: ChatRequest) -> bool:
    return body.tool_choice == "required" or isinstance(body.tool_choice, NamedTool)
