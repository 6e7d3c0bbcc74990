"""`loragraft chat` as somebody at a terminal has it: a real pseudo-terminal, keys and Ctrl-C."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from paths import data
from served import chat_model

CHAT = [sys.executable, "-m", "loragraft", "chat"]


class Terminal:
    """A terminal in which `loragraft chat` runs."""

    def __init__(self, words: list[str], folder: Path) -> None:
        self.pid, self._keys = pty.fork()
        if not self.pid:
            os.chdir(folder)
            os.execve(
                words[0], words, {**os.environ, "TERM": "xterm", "NO_COLOR": "1", "INPUTRC": "/dev/null"}
            )

    def type(self, keys: str) -> None:
        os.write(self._keys, keys.encode())

    def until(self, end: str, seconds: float = 60) -> str:
        """What is shown up to `end`."""
        shown, limit = "", time.monotonic() + seconds
        while not shown.endswith(end):
            ready, _, _ = select.select([self._keys], [], [], max(0.0, limit - time.monotonic()))
            assert ready, f"shown so far: {shown!r}"
            try:
                part = os.read(self._keys, 1 << 16)
            except OSError:  # it has ended
                return shown
            shown += part.decode(errors="replace").replace("\x1b[?2004h", "").replace("\x1b[?2004l", "")
        return shown

    def answer(self, line: str) -> str:
        """What a line gives: all that is shown before the next prompt, which stands at the start of a line."""
        self.type(line + "\n")
        return self.until("\r\n> ").replace("\r", "").removeprefix(line).removesuffix("> ").strip("\n")

    def close(self) -> int:
        os.close(self._keys)
        return os.waitpid(self.pid, 0)[1]


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    folder = tmp_path_factory.mktemp("chat")
    lora = f"poet={data('llama-kjv.shakespeare')}"
    opened = Terminal([*CHAT, str(chat_model(folder)), "--lora", lora, "--temp", "0", "-n", "900"], folder)
    opened.folder = folder  # type: ignore[attr-defined]
    opened.until("> ")
    yield opened
    os.kill(opened.pid, signal.SIGKILL)
    opened.close()


@pytest.mark.parametrize("seconds", [0.01, 0.05, 0.3])
def test_a_reply_is_stopped_and_the_conversation_goes_on(terminal: Terminal, seconds: float) -> None:
    terminal.answer("/new")
    terminal.type("What say you?\n")
    terminal.until("What say you?\r\n")
    time.sleep(seconds)
    terminal.type("\x03")
    time.sleep(0.2)
    terminal.type("/lora\n")  # whatever prompts there are before: this is what is shown last
    terminal.until("poet  1\r\n> ")
    terminal.type("\x1b[A\x1b[A")  # the line before that
    terminal.until("What say you?", 10)
    terminal.type("\x15")
    terminal.type("/save out.json\n")
    terminal.until("saved out.json\r\n> ")
    said = json.loads((terminal.folder / "out.json").read_text())  # type: ignore[attr-defined]
    assert [message["role"] for message in said["messages"]] in ([], ["user"], ["user", "assistant"])
    assert said["adapters"] == {"poet": 1.0}


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ("/lora", "poet  1"),
        ("/lora nobody 1", "nobody: no adapter of this name"),
        ("/lora poet=0.5; /lora", "poet  0.5"),
        ("/lora poet nan", "strength: not a number: found 'nan'"),
        ("/lora poet x", "strength: not a number: found 'x'"),
        ("/temp -1", "temperature: cannot be so: found '-1', expected a number from 0 on"),
        ("/temp inf", "temperature: cannot be so"),
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
        [*CHAT, str(model)], input="hi\n", capture_output=True, text=True, timeout=60, check=False
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
