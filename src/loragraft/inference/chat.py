"""Chat templates: a conversation as the text that a model was trained to continue.

A template is a Jinja program that came with the model's file, so it runs in Jinja's sandbox, in a process of its own
with limits of time and memory (`template_process.py`). It sees what transformers gives it (`apply_chat_template`,
utils/chat_template_utils.py): the messages, the texts of BOS and EOS, whether to open the reply, `raise_exception`,
`strftime_now`, and a `tojson` that escapes nothing.
"""

from __future__ import annotations

import atexit
import importlib.util
import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from loragraft.backends.batch import Ids
from loragraft.errors import LoragraftError
from loragraft.formats.source import ModelSource
from loragraft.inference.tokenizer import Tokenizer

Message = Mapping[str, Any]
"""`role` (system, user, assistant, ...) and `content`: what JSON can hold."""

#: Seconds until a rendering is given up, on a machine with much else to do; its processor time is bounded more closely.
PATIENCE = 30.0
_HINT = "pass the prompt as it is, without --chat"
_START = "import sys, runpy; sys.path[:0] = sys.argv[2:]; runpy.run_path(sys.argv[1], run_name='__main__')"


def render(
    template: str,
    messages: Sequence[Message],
    *,
    bos: str = "",
    eos: str = "",
    open_reply: bool = True,
    tools: Sequence[Mapping[str, Any]] | None = None,
    extra: Mapping[str, Any] | None = None,
    subject: str | PathLike[str] = "chat template",
) -> str:
    """The text of `messages` under `template`; with `open_reply` up to where the model's reply begins.

    `bos`, `eos`: the texts of these tokens; `tools`: functions that the model may call; `extra`: further variables of
    the template. Raises LoragraftError, naming `subject`, for a template that is malformed,
    that refuses the messages, or that takes more time or memory than any conversation needs.
    """
    variables = {
        **(extra or {}),
        "messages": list(messages),
        "tools": None if tools is None else list(tools),
        "bos_token": bos,
        "eos_token": eos,
        "add_generation_prompt": open_reply,
    }
    try:
        request = json.dumps({"template": template, "variables": variables}).encode() + b"\n"
    except (TypeError, ValueError, RecursionError) as problem:
        raise LoragraftError(
            "messages", f"cannot be written as JSON: {problem}", expected="roles and contents"
        ) from None
    answer = _renderer.ask(request)
    if "problem" in answer:
        reason = " ".join(answer["problem"].split())
        raise LoragraftError(subject, f"its chat template fails: {reason}", hint=_HINT)
    return str(answer["text"])


def template_of(model: ModelSource) -> str:
    """The chat template of `model`. Raises LoragraftError if it has none."""
    template = model.metadata.get("tokenizer.chat_template")
    if template is None:
        raise LoragraftError(model.path, "has no chat template", hint=_HINT)
    return str(template.data)


def conversation_text(
    model: ModelSource,
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    open_reply: bool = True,
    tools: Sequence[Mapping[str, Any]] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> str:
    """`render` with the template of `model`."""
    bos, eos = (
        "" if token is None else tokenizer.decode([token], show_special=True)
        for token in (tokenizer.bos, tokenizer.eos)
    )
    return render(
        template_of(model),
        messages,
        bos=bos,
        eos=eos,
        open_reply=open_reply,
        tools=tools,
        extra=extra,
        subject=model.path,
    )


def with_bos(tokenizer: Tokenizer, ids: Ids) -> Ids:
    """The tokens of a conversation with BOS first, if the model wants it. Most templates write it themselves; as in
    llama.cpp, it comes once."""
    missing = tokenizer.add_bos and (not len(ids) or ids[0] != tokenizer.bos)
    return np.concatenate([[tokenizer.bos], ids]).astype(np.int32) if missing else ids


class _Renderer:
    """The process that renders; started when it is first asked, and anew after one that was ended."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0

    def ask(self, request: bytes) -> dict[str, Any]:
        """The answer to `request`, one line of JSON."""
        with self._lock:
            process = self._running()
            try:
                line = _exchange(process, request, time.monotonic() + PATIENCE)
                answer: dict[str, Any] = json.loads(line) if line else {"problem": "it takes too long"}
            except BaseException:
                self._end()  # whatever it would still say is not an answer to the next request
                raise
            if not line:
                self._end()
            return answer

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._owner == os.getpid() and self._process.poll() is None:
            return self._process
        if self._owner == os.getpid():
            self._end()
        self._process, self._owner = _start(), os.getpid()  # after a fork: the parent's is the parent's
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None and self._owner == os.getpid():
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()

    def close(self) -> None:
        """End the process."""
        self._end()


def _start() -> subprocess.Popen[bytes]:
    """An interpreter that finds Jinja and nothing else of the environment."""
    places = []
    for name in ("jinja2", "markupsafe"):
        found = importlib.util.find_spec(name)
        if found is not None and found.origin is not None:
            places.append(str(Path(found.origin).parent.parent))
    program = str(Path(__file__).with_name("template_process.py"))
    command = [sys.executable or "python3", "-I", "-S", "-c", _START, program, *dict.fromkeys(places)]
    try:
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0
        )
    except OSError as problem:
        raise LoragraftError(
            "chat template", f"cannot start a process to render it: {problem.strerror}", hint=_HINT
        ) from None


def _exchange(process: subprocess.Popen[bytes], request: bytes, until: float) -> bytes:
    """The line that answers `request`; empty if it does not come in time, or the process ended."""
    assert process.stdin is not None
    assert process.stdout is not None
    writes, reads = process.stdin.fileno(), process.stdout.fileno()
    os.set_blocking(writes, False)
    left, parts = memoryview(request), [b""]
    while not parts[-1].endswith(b"\n"):
        ready, free, _ = select.select(
            [reads], [writes] if left else [], [], max(0.0, until - time.monotonic())
        )
        if not ready and not free:
            return b""
        if free:
            try:
                left = left[os.write(writes, left) :]
            except BrokenPipeError:
                return b""
        if ready:
            parts.append(os.read(reads, 1 << 20))
            if not parts[-1]:
                return b""
    return b"".join(parts)


_renderer = _Renderer()
atexit.register(_renderer.close)
