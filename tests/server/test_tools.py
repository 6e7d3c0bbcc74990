"""What of a reply that may call a function can be sent while it comes."""

from __future__ import annotations

import asyncio
import threading

import pytest

from loragraft.server.aside import Aside
from loragraft.server.schema import Tool, ToolFunction
from loragraft.server.tools import Speech, find_calls

TOOLS = [Tool(type="function", function=ToolFunction(name="f"))]
CALL = '{"name": "f", "arguments": {"a": 1}}'


@pytest.mark.parametrize(
    ("text", "called"),
    [
        ("Hello, world.", 0),
        (" \n Hello  there \n", 0),
        ("1 < 2 and <b>bold</b> <tool", 0),
        ("[a link](b) and text", 0),
        ('{"not": "a call"}', 0),
        (CALL, 1),
        (f"  {CALL}", 1),
        (f"<tool_call>{CALL}</tool_call>", 1),
        (f"I look. \n\n<tool_call>{CALL}</tool_call>", 1),
        (f" I look.<tool_call>{CALL}</tool_call> <tool_call>{CALL}</tool_call> Wait.", 2),
        ("It says <tool_call>nothing</tool_call> of use", 0),
        (f"So: [TOOL_CALLS][{CALL}, {CALL}]", 2),
        (f"Well <|python_tag|>{CALL}", 1),
        ("A list [1, 2] and [TOOL", 0),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_what_is_sent_is_what_is_said(text: str, called: int, size: int) -> None:
    """However the reply is cut into pieces, and no part of a call before it is known not to be one."""
    speech, parts = Speech(tools=True), []
    for at in range(0, len(text), size):
        parts.append(speech.push(text[at : at + size]))
        assert "<tool_call>" not in "".join(parts)
    said, calls = find_calls(speech.text, TOOLS)
    assert len(calls) == called
    whole = "".join(parts) + speech.rest(said)
    assert (whole.lstrip() if calls else whole) == said


def test_text_does_not_wait_for_the_end() -> None:
    speech = Speech(tools=True)
    assert [speech.push(part) for part in ("Hel", "lo ", "wor", "ld <", "b> ")] == [
        "Hel",
        "lo",
        " wor",
        "ld",
        " <b>",
    ]
    assert speech.rest(speech.text) == " "
    speech = Speech(tools=False)
    assert [speech.push(part) for part in (" {", "<tool_call>")] == [" {", "<tool_call>"]
    assert speech.rest(speech.text) == ""


def test_grammars_do_not_hold_back_others() -> None:
    """One may take seconds to compile, and is anybody's."""
    aside, go_on = Aside(8), threading.Event()

    def compiled() -> str:
        go_on.wait()
        return "compiled"

    async def run() -> list[str]:
        slow = [asyncio.ensure_future(aside.run(compiled, slow=True)) for _ in range(4)]
        quick = await aside.run(lambda: "read")
        assert not any(each.done() for each in slow)
        go_on.set()
        return [quick, *await asyncio.gather(*slow)]

    try:
        assert asyncio.run(run()) == ["read"] + ["compiled"] * 4
    finally:
        go_on.set()
        aside.close()
