"""Renders chat templates: the program that `chat.py` asks.

A template is a Jinja program of a stranger. Jinja's sandbox keeps it from the machine, and not from taking all of its
time and memory: `{{ 'a' * 10**10 }}`, or two loops of 100,000. So it runs in a process of its own, under the system's
limits, which nothing in the template can count around. Nothing of loragraft is imported here.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

#: Seconds of processor time for one conversation; the longest templates in use take some milliseconds.
MAX_SECONDS = 2
#: Bytes of memory beside those of the process itself.
MAX_MEMORY = 1 << 28
#: Characters of a rendered conversation, and of a template.
MAX_TEXT, MAX_TEMPLATE = 1 << 24, 1 << 20


class _Generation(Extension):
    """`{% generation %}` marks a reply for training; for prompting it means nothing."""

    tags = {"generation"}  # noqa: RUF012 (the name that Jinja reads)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        body: list[nodes.Node] = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return body


def render(template: str, variables: dict[str, Any]) -> str:
    """The text of `template`. Raises whatever Jinja and Python raise."""
    if len(template) > MAX_TEMPLATE:
        raise TemplateError(f"it has {len(template)} characters, at most {MAX_TEMPLATE} are taken")
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    text = environment.from_string(template).render(variables)
    if len(text) > MAX_TEXT:
        raise TemplateError(f"it makes {len(text)} characters, at most {MAX_TEXT} are taken")
    return text


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **more: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **more)


def answer(request: dict[str, Any]) -> str:
    """See `system/confined_process.py`."""
    try:
        return render(request["template"], request["variables"])
    except (TemplateError, MemoryError, RecursionError):
        raise
    except Exception as problem:
        raise TemplateError(f"{type(problem).__name__}: {problem}") from None
