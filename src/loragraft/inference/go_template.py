"""A Jinja chat template as a template of Go's text/template, which Ollama runs.

Jinja programs cannot be translated in general. But most templates put fixed texts around each message: these are found
by rendering conversations of marked words, and the result is held against the template on longer ones. What is not so
plain is not guessed at.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from loragraft.errors import LoragraftError

Messages = Sequence[Mapping[str, str]]
Render = Callable[[Messages, bool], str]
"""A conversation's text; with True up to where the reply begins."""

_S, _U, _A = "Sysxq1tem", "Usxq2er", "Repxq3ly"


@dataclass(frozen=True, slots=True)
class Plain:
    """The fixed texts. `default`: what stands first if there is no system message. `before_user`: the system message
    goes within the first user's, with `system[1]` between, instead of around itself."""

    default: str
    system: tuple[str, str] | None
    user: tuple[str, str]
    assistant: tuple[str, str]
    reply: str
    before_user: bool = False

    def text(self, messages: Messages, open_reply: bool) -> str:
        """What Ollama makes of `messages` by `go`."""
        system = next((each["content"] for each in messages if each["role"] == "system"), None)
        parts = [self.default if system is None else ""]
        for number, each in enumerate(messages):
            if each["role"] == "system":
                if self.system is not None and not self.before_user:
                    parts += [self.system[0], each["content"], self.system[1]]
            elif each["role"] == "user":
                parts.append(self.user[0])
                if self.before_user and self.system is not None and number == 1 and system is not None:
                    parts += [system, self.system[1]]
                parts += [each["content"], self.user[1]]
            else:
                parts += [self.assistant[0], each["content"], self.assistant[1]]
        return "".join(parts) + (self.reply if open_reply else "")

    def go(self) -> str:
        """One line, so that no white space of its own gets in."""
        within = after = ""
        if self.system is not None and self.before_user:
            within = "{{ if and $.System (eq $i 1) }}{{ $.System }}" + _literal(self.system[1]) + "{{ end }}"
        elif self.system is not None:
            after = '{{ if eq .Role "system" }}' + _around(self.system, "") + '{{ else if eq .Role "user" }}'
        after = after or '{{ if eq .Role "user" }}'
        return "".join(
            [
                "{{ if not .System }}" + _literal(self.default) + "{{ end }}" if self.default else "",
                "{{ range $i, $_ := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}",
                after,
                _around(self.user, within),
                '{{ else if eq .Role "assistant" }}',
                _literal(self.assistant[0]),
                "{{ .Content }}{{ if not $last }}",
                _literal(self.assistant[1]),
                "{{ end }}{{ end }}",
                '{{ if and $last (ne .Role "assistant") }}',
                _literal(self.reply),
                "{{ end }}{{ end }}",
            ]
        )

    @property
    def stops(self) -> list[str]:
        """What ends a reply."""
        ends = [end.strip() for end in (self.assistant[1], self.user[1])]
        return list(dict.fromkeys(end for end in ends if end))


def plain_template(render: Render, bos: str = "") -> Plain | None:
    """The fixed texts of the template that `render` renders, without `bos`, which Ollama adds; None if it is not so
    plain."""
    try:
        found = _found(lambda messages, open_reply: render(messages, open_reply).removeprefix(bos))
    except (LoragraftError, ValueError):
        return None
    for messages in _conversations(found.system is not None):
        for open_reply in (False, True):
            try:
                wanted = render(messages, open_reply).removeprefix(bos)
            except LoragraftError:
                return None
            if found.text(messages, open_reply) != wanted:
                return None
    return found


def _found(render: Render) -> Plain:
    """Raises ValueError for a template in which the texts are not where they should be."""
    user, assistant = {"role": "user", "content": _U}, {"role": "assistant", "content": _A}
    opened, closed = render([user], True), render([user], False)
    _, user_end = _split(closed, _U)
    reply = _without(_split(opened, _U)[1], user_end)
    _, after = _split(render([user, assistant], False), _A)
    talk = render([user, assistant, {"role": "user", "content": _U + "2"}], True)
    first, between, rest = talk.partition(_U)[0], *_split(talk.partition(_U)[2], _A)
    reply_start = _without(between, user_end)
    user_start = _without(rest.partition(_U + "2")[0], after)
    if not first.endswith(user_start):
        raise ValueError
    plain = Plain(first.removesuffix(user_start), None, (user_start, user_end), (reply_start, after), reply)
    try:
        told = render([{"role": "system", "content": _S}, user], True)
        before, behind = _split(told, _S)
    except (LoragraftError, ValueError):
        return plain  # a template that takes no system message
    gap = behind.partition(_U)[0]
    if gap.endswith(user_start) and (user_start or before):
        return replace(plain, system=(before, gap.removesuffix(user_start)))
    if before.endswith(user_start):
        return replace(plain, system=("", gap), before_user=True)
    raise ValueError


def _conversations(system: bool) -> list[Messages]:
    """To hold the result against: of one to three turns, with and without a system message."""
    found: list[Messages] = []
    for turns in (1, 2, 3):
        messages: list[Mapping[str, str]] = []
        for turn in range(turns):
            if turn:
                messages.append({"role": "assistant", "content": f"The {turn}. answer, of\ntwo lines"})
            messages.append({"role": "user", "content": f"Question {turn}?"})
        found.append(messages)
        if system:
            found.append([{"role": "system", "content": "Be brief."}, *messages])
    return found


def _split(text: str, word: str) -> tuple[str, str]:
    before, found, after = text.partition(word)
    if not found:
        raise ValueError
    return before, after


def _without(text: str, start: str) -> str:
    if not text.startswith(start):
        raise ValueError
    return text.removeprefix(start)


def _literal(text: str) -> str:
    """As a string of Go's: braces and white space in it are its own. Ollama drops what cannot be printed from a
    Modelfile, so it is escaped."""
    quoted = "".join(
        char if char.isprintable() else f"\\U{ord(char):08x}" for char in json.dumps(text, ensure_ascii=False)
    )
    return "{{ " + quoted + " }}" if text else ""


def _around(pair: tuple[str, str], within: str) -> str:
    return _literal(pair[0]) + within + "{{ .Content }}" + _literal(pair[1])
