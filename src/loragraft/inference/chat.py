"""Chat templates: a conversation as the text that a model was trained to continue.

A template is a Jinja program that came with the model's file, so it runs in Jinja's sandbox. It sees what transformers
gives it (`apply_chat_template`, utils/chat_template_utils.py): the messages, the texts of BOS and EOS, whether to open
the reply, `raise_exception`, `strftime_now`, and a `tojson` that escapes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from os import PathLike
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from loragraft.errors import LoragraftError

Message = Mapping[str, Any]
"""`role` (system, user, assistant, ...) and `content`."""


class _Generation(Extension):
    """`{% generation %}` marks a reply for training; for prompting it means nothing."""

    tags = {"generation"}  # noqa: RUF012 (the name that Jinja reads)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        body: list[nodes.Node] = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return body


def render(
    template: str,
    messages: Sequence[Message],
    *,
    bos: str = "",
    eos: str = "",
    open_reply: bool = True,
    subject: str | PathLike[str] = "chat template",
) -> str:
    """The text of `messages` under `template`; with `open_reply` up to where the model's reply begins.

    `bos`, `eos`: the texts of these tokens. Raises LoragraftError, naming `subject`, for a template that is malformed
    or that refuses the messages.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return environment.from_string(template).render(
            messages=messages, bos_token=bos, eos_token=eos, add_generation_prompt=open_reply
        )
    except (TemplateError, TypeError, ValueError, ArithmeticError, RecursionError, OverflowError) as problem:
        raise LoragraftError(
            subject, f"its chat template fails: {problem}", hint="pass the prompt as it is, without --chat"
        ) from None


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **more: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **more)
