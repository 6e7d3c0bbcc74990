"""`loragraft chat` as somebody at a terminal has it: a real pseudo-terminal, keys and Ctrl-C."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from paths import data
from served import chat_model

CHAT = [sys.executable, "-m", "loragraft", "chat"]


#: Makes its standard input the controlling terminal, and becomes what the other words are.
_IN_A_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


class Terminal:
    """A terminal in which `loragraft chat` runs. What it shows comes in parts that are cut anywhere."""

    def __init__(self, words: list[str], folder: Path) -> None:
        self.folder = folder
        self._keys, terminal = pty.openpty()
        termios.tcsetwinsize(terminal, (24, 80))
        environment = {**os.environ, "TERM": "xterm", "NO_COLOR": "1", "INPUTRC": "/dev/null"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", _IN_A_TERMINAL, *words],
            cwd=folder,
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            env={name: value for name, value in environment.items() if name not in ("COLUMNS", "LINES")},
            start_new_session=True,
        )
        os.close(terminal)
        self._bytes = b""
        self._saved = 0

    def type(self, keys: str) -> None:
        os.write(self._keys, keys.encode())

    def shows(self, end: str, seconds: float) -> str | None:
        """What is shown up to `end`, which what follows is kept from; None if it does not come in so many seconds."""
        limit = time.monotonic() + seconds
        while True:
            shown = self._bytes.decode(errors="replace")
            shown = shown.replace("\x1b[?2004h", "").replace("\x1b[?2004l", "")
            before, found, after = shown.partition(end)
            if found:
                self._bytes = after.encode()
                return before + found
            if not select.select([self._keys], [], [], max(0.0, limit - time.monotonic()))[0]:
                return None
            self._bytes += os.read(self._keys, 1 << 16)  # OSError where it has ended

    def until(self, end: str) -> str:
        """What is shown up to `end`."""
        shown = self.shows(end, 120)
        assert shown is not None, f"shown so far: {self._bytes!r}"
        return shown

    def answer(self, line: str) -> str:
        """What a line gives: all that is shown before the next prompt, which stands at the start of a line."""
        self.type(line + "\n")
        return self.until("\r\n> ").replace("\r", "").removeprefix(line).removesuffix("\n> ").strip("\n")

    def saved(self) -> dict[str, Any]:
        """The conversation, saved under a name that was never shown: behind that there is a prompt and no more. A line
        that is typed while Ctrl-C is obeyed goes with it; then it is typed again."""
        for _ in range(40):
            self._saved += 1
            name = f"out{self._saved}.json"
            self.type(f"/save {name}\n")
            if self.shows(f"saved {name}\r\n> ", 5) is not None:
                return dict(json.loads((self.folder / name).read_text()))
        raise AssertionError(f"shown so far: {self._bytes!r}")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._keys)


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    folder = tmp_path_factory.mktemp("chat")
    lora = f"poet={data('llama-kjv.shakespeare')}"
    opened = Terminal([*CHAT, str(chat_model(folder)), "--lora", lora, "--temp", "0", "-n", "900"], folder)
    try:
        opened.until("Ctrl-D ends.\r\n> ")
        yield opened
    finally:
        opened.close()


@pytest.mark.parametrize("seconds", [0.0, 0.01, 0.05, 0.3])
def test_a_reply_is_stopped_and_the_conversation_goes_on(terminal: Terminal, seconds: float) -> None:
    """At whatever moment: before its first piece, within it, or when it has ended."""
    terminal.answer("/new")
    terminal.type("What say you?\n")
    terminal.until("What say you?\r\n")
    time.sleep(seconds)
    terminal.type("\x03")
    said = terminal.saved()
    assert [message["role"] for message in said["messages"]] in ([], ["user"], ["user", "assistant"])
    assert said["adapters"] == {"poet": 1.0}
    assert terminal.answer("/lora") == "poet  1"
    terminal.type("\x1b[A")  # the line before
    terminal.until("/lora")
    terminal.type("\x15")  # and away with it
    assert terminal.saved() == said


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ("/lora", "poet  1"),
        ("/lora nobody 1", "nobody: no adapter of this name"),
        ("/lora poet=0.5; /lora", "poet  0.5"),
        ("/lora poet nan", "strength: not a number: found 'nan'"),
        ("/lora poet x", "strength: not a number: found 'x'"),
        ("/temp -1", "temperature: out of range: found '-1', expected a number from 0 on"),
        ("/temp inf", "temperature: out of range"),
        ("/nonsense", "/nonsense: no such command; /help lists them"),
        ("/load x /nonexistent", "/nonexistent: no such file or folder"),
        ("/save /nonexistent/x", "its folder does not exist"),
        ("/help", "Ctrl-C stops a reply"),
        ("/new; /again", "there is no message to repeat"),
    ],
)
def test_commands(terminal: Terminal, lines: str, says: str) -> None:
    """Each line is typed when the prompt is there; the last one's answer counts."""
    assert says in [terminal.answer(line) for line in lines.split("; ")][-1]


def test_a_model_that_cannot_chat(tmp_path: Path) -> None:
    """It is said at once, and what to type instead."""
    model = data("llama-kjv")
    ended = subprocess.run(
        [*CHAT, str(model)], input="hi\n", capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 1
    assert "has no chat template" in ended.stderr
    assert f"loragraft run {model} -p TEXT" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_a_pipe_gets_replies_and_nothing_else(tmp_path: Path) -> None:
    ended = subprocess.run(
        [*CHAT, str(chat_model(tmp_path)), "--temp", "0", "-n", "6"],
        input="What say you?\n/lora\n/nonsense\n",
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0
    assert "> " not in ended.stdout
    assert ended.stdout.endswith("\nno adapters; /load NAME PATH adds one\n")
    assert "/nonsense: no such command" in ended.stderr
