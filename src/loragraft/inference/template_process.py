"""Renders chat templates, one request a line on stdin, one answer a line on stdout: the other end of `chat.py`.

A template is a Jinja program of a stranger. Jinja's sandbox keeps it from the machine, and not from taking all of its
time and memory: `{{ 'a' * 10**10 }}`, or two loops of 100,000. So it runs in a process of its own, under the system's
limits, which nothing in the template can count around. Nothing of loragraft is imported here.
"""

from __future__ import annotations

import json
import resource
import sys
from datetime import datetime
from pathlib import Path
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


def _answer(request: dict[str, Any]) -> dict[str, str]:
    """`text`, or what went wrong as `problem`."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    seconds = int(used.ru_utime + used.ru_stime) + 1 + MAX_SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (seconds if hard < 0 else min(seconds, hard), hard))
    try:
        return {"text": render(request["template"], request["variables"])}
    except MemoryError:
        return {"problem": "it takes too much memory"}
    except RecursionError:
        return {"problem": "it is nested too deeply"}
    except Exception as problem:
        text = f"{problem}" if isinstance(problem, TemplateError) else f"{type(problem).__name__}: {problem}"
        return {"problem": text[:1000]}


def main() -> None:
    """Answer until stdin ends."""
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if soft < 0 or soft > mapped + MAX_MEMORY:
        resource.setrlimit(resource.RLIMIT_AS, (mapped + MAX_MEMORY, hard))
    for line in sys.stdin.buffer:
        answer = _answer(json.loads(line))
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
