"""A server under a mixed load, with clients that leave, broken adapters, oversized and broken bodies.

`make soak SECONDS=3600`. The load comes in rounds; between them nothing runs, and the server's memory, threads and
descriptors are counted. What must hold: every request that was sent whole and waited for gets the answer that it
should, and nothing grows once the server is warm.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import signal
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from paths import data
from served import chat_model, scaled_adapter, serving

_TEXT = "the king of Judah spake unto his people and said what say you of bread and wine"
WORDS = _TEXT.split(" ")
PATIENCE = 120.0
#: How a server ends that was told to by SIGTERM.
STOPPED = (0, 128 + signal.SIGTERM, -signal.SIGTERM)
#: The tokens that invoke the aLoRA.
INVOCATION = [400, 401]
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


@dataclass(frozen=True, slots=True)
class Sample:
    """What the server's process holds between two rounds."""

    seconds: float
    resident: int
    threads: int
    descriptors: int


@dataclass
class Report:
    """`answers`: how many requests of each kind got which status. `wrong`: those that got none, or another than they
    should."""

    answers: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    exit_code: int | None = None

    def growth(self, warm: float = 0.3) -> dict[str, float]:
        """From the first third of what follows the warm-up to the last third: bytes, threads, descriptors (medians)."""
        later = self.samples[int(len(self.samples) * warm) :]
        third = max(1, len(later) // 3)

        def grown(name: str) -> float:
            values = [getattr(sample, name) for sample in later]
            return statistics.median(values[-third:]) - statistics.median(values[:third])

        return {name: grown(name) for name in ("resident", "threads", "descriptors")}


class Load:
    """The actions of clients, in random order."""

    def __init__(self, url: str, report: Report, seed: int) -> None:
        self._place = urlsplit(url)
        self._report = report
        self._random = np.random.default_rng(seed)
        self._loads = self._invocations = 0
        self._deck: list[Callable[[], Awaitable[None]]] = []
        self._actions: list[tuple[int, Callable[[], Awaitable[None]]]] = [
            (4, self.chat),
            (4, self.stream),
            (3, self.leave_a_stream),
            (2, self.leave_before_the_answer),
            (1, self.leave_within_the_request),
            (1, self.embed),
            (2, self.respond),
            (2, self.message),
            (1, self.invoke),
            (1, self.call_a_tool),
            (1, self.follow_a_schema),
            (2, self.ask_a_broken_adapter),
            (1, self.ask_for_nobody),
            (1, self.send_too_much),
            (1, self.send_what_is_not_json),
            (1, self.load_and_unload),
            (1, self.look),
        ]

    async def act(self) -> None:
        if not self._deck:  # so that each comes as often as it should, however few there are
            self._deck = [action for count, action in self._actions for _ in range(count)]
            self._random.shuffle(self._deck)  # type: ignore[arg-type]
        action = self._deck.pop()
        name = action.__name__
        try:
            await asyncio.wait_for(action(), PATIENCE)
        except (TimeoutError, OSError, ValueError, AssertionError) as problem:
            self._report.wrong.append(f"{name}: {type(problem).__name__}: {problem}"[:300])

    # ---- requests ----

    def _prompt(self) -> str:
        return " ".join(self._random.choice(WORDS, int(self._random.integers(2, 80))))

    def _model(self) -> str:
        return str(self._random.choice(["kjv", "one", "two", "three", "four"]))

    def _chat(self, **more: object) -> dict[str, object]:
        return {
            "model": self._model(),
            "messages": [{"role": "user", "content": self._prompt()}],
            "max_tokens": int(self._random.integers(1, 40)),
            "temperature": float(self._random.choice([0, 1])),
            **more,
        }

    async def _send(
        self, path: str, body: bytes, method: str = "POST"
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection(self._place.hostname, self._place.port)
        head = f"{method} {path} HTTP/1.1\r\nhost: {self._place.netloc}\r\nconnection: close\r\n"
        writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        return reader, writer

    async def _ask(
        self, kind: str, path: str, body: object, wanted: tuple[int, ...] = (200,), method: str = "POST"
    ) -> bytes:
        """The whole answer, whose status must be one of `wanted`; where the server is full, 429 or 503 is one too."""
        raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        reader, writer = await self._send(path, raw, method)
        try:
            answer = await reader.read()
        finally:
            writer.close()
        found = re.match(rb"HTTP/1.1 (\d+)", answer)
        assert found, f"no answer, {answer[:80]!r}"
        status = int(found[1])
        self._report.answers[f"{kind} {status}"] += 1
        assert status in (*wanted, 429, 503), answer[-300:]
        return answer

    async def chat(self) -> None:
        answer = await self._ask("chat", "/v1/chat/completions", self._chat())
        assert b'"finish_reason":' in answer or b'"error"' in answer

    async def stream(self) -> None:
        answer = await self._ask("stream", "/v1/chat/completions", self._chat(stream=True))
        assert b"data: [DONE]" in answer or b'"error"' in answer, answer[-300:]

    async def leave_a_stream(self) -> None:
        body = self._chat(stream=True, max_tokens=400)
        reader, writer = await self._send("/v1/chat/completions", json.dumps(body).encode())
        for _ in range(int(self._random.integers(1, 12))):
            await reader.readline()
        writer.transport.abort()
        self._report.answers["left a stream"] += 1

    async def leave_before_the_answer(self) -> None:
        _, writer = await self._send("/v1/chat/completions", json.dumps(self._chat(max_tokens=400)).encode())
        await asyncio.sleep(float(self._random.random()) * 0.2)
        writer.transport.abort()
        self._report.answers["left before the answer"] += 1

    async def leave_within_the_request(self) -> None:
        _, writer = await asyncio.open_connection(self._place.hostname, self._place.port)
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 999\r\n\r\n{")
        await asyncio.sleep(float(self._random.random()) * 0.1)
        writer.transport.abort()
        self._report.answers["left within the request"] += 1

    async def embed(self) -> None:
        texts = [self._prompt() for _ in range(int(self._random.integers(1, 5)))]
        pooling = str(self._random.choice(["mean", "last"]))
        answer = await self._ask(
            "embed", "/v1/embeddings", {"model": self._model(), "input": texts, "pooling": pooling}
        )
        assert answer.count(b'"embedding":[') == len(texts) or b'"error"' in answer, answer[-300:]

    async def respond(self) -> None:
        """OpenAI's Responses, in one or streamed."""
        stream = bool(self._random.random() < 0.5)
        body = {"model": self._model(), "input": self._prompt(), "max_output_tokens": 20, "stream": stream}
        answer = await self._ask("responses", "/v1/responses", body)
        end = b"event: response." if stream else b'"object":"response"'
        assert end in answer or b'"error"' in answer, answer[-300:]
        if stream and b"event: response." in answer:
            assert b"event: response.incomplete" in answer or b"event: response.completed" in answer

    async def message(self) -> None:
        """Anthropic's Messages, in one or streamed."""
        stream = bool(self._random.random() < 0.5)
        messages = [{"role": "user", "content": self._prompt()}]
        body = {"model": self._model(), "messages": messages, "max_tokens": 20, "stream": stream}
        answer = await self._ask("messages", "/v1/messages", body)
        end = b"event: message_stop" if stream else b'"stop_reason":"'
        assert end in answer or b'"error"' in answer, answer[-300:]

    async def invoke(self) -> None:
        """An adapter that works from its invocation tokens on; where the prompt does not hold them, an error."""
        before = [int(token) for token in self._random.integers(5, 300, int(self._random.integers(1, 60)))]
        self._invocations += 1
        invoked = self._invocations % 5 > 0
        prompt = [*before, *INVOCATION, 20, 21] if invoked else before
        body = {"model": "judge", "prompt": prompt, "max_tokens": 12}
        kind = "aLoRA" if invoked else "aLoRA without its tokens"
        await self._ask(kind, "/v1/completions", body, (200,) if invoked else (400,))

    async def call_a_tool(self) -> None:
        function = {"name": "weather", "parameters": SCHEMA}
        body = self._chat(
            tools=[{"type": "function", "function": function}],
            tool_choice="required",
            max_tokens=60,
            stream=bool(self._random.random() < 0.5),
        )
        await self._ask("tool", "/v1/chat/completions", body)

    async def follow_a_schema(self) -> None:
        form = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}
        await self._ask("schema", "/v1/chat/completions", self._chat(response_format=form))

    async def ask_a_broken_adapter(self) -> None:
        name = str(self._random.choice(["torn", "foreign"]))
        await self._ask("broken adapter", "/v1/chat/completions", self._chat(model=name), (400,))

    async def ask_for_nobody(self) -> None:
        await self._ask("no such model", "/v1/chat/completions", self._chat(model="nobody"), (404,))

    async def send_too_much(self) -> None:
        """More than a body may have, said in the header only: the server need not wait for it."""
        reader, writer = await asyncio.open_connection(self._place.hostname, self._place.port)
        head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999\r\n\r\n"
        writer.write(head.encode() + b"x" * 1000)
        try:
            first = await reader.readline()
        finally:
            writer.close()
        assert b" 413 " in first, first
        self._report.answers["too much 413"] += 1

    async def send_what_is_not_json(self) -> None:
        for body in (b"[" * 100_000, b'{"model": "kjv"', b"\xff\xfe"):
            await self._ask("not JSON", "/v1/chat/completions", body, (400,))

    async def load_and_unload(self) -> None:
        self._loads += 1
        name = f"extra{self._loads}"
        await self._ask("load", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": "one"})
        await self._ask("chat", "/v1/chat/completions", self._chat(model=name))
        await self._ask("unload", "/v1/unload_lora_adapter", {"lora_name": name})

    async def look(self) -> None:
        for path in ("/metrics", "/health", "/v1/models", "/"):
            await self._ask(f"GET {path}", path, None, method="GET")


def descriptors(pid: int) -> list[str]:
    """What the process has open."""
    found = []
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):  # closed meanwhile
            found.append(os.readlink(path))
    return found


def sockets(pid: int) -> int:
    return sum(name.startswith("socket:") for name in descriptors(pid))


def counted(pid: int, seconds: float, own: int) -> Sample:
    """What the process holds, once no more sockets are open than its `own`: connections of clients that left are closed
    one by one."""
    end = time.monotonic() + PATIENCE
    while sockets(pid) > own and time.monotonic() < end:
        time.sleep(0.02)
    status = Path(f"/proc/{pid}/status").read_text()
    resident, threads = (int(re.findall(rf"{name}:\s+(\d+)", status)[0]) for name in ("RssAnon", "Threads"))
    return Sample(seconds, 1024 * resident, threads, len(descriptors(pid)))


def soak(
    folder: Path,
    seconds: float,
    *,
    clients: int = 12,
    a_round: int = 8,
    rounds: int = 1,
    answers: Collection[str] = (),
    seed: int = 0,
) -> Report:
    """Load a server for `seconds`, in rounds of `a_round` requests for each of `clients`, at least so many `rounds`.
    The requests are drawn at random: until each of `answers` was given, it goes on for up to ten times as many rounds.
    """
    adapters = folder / "adapters"
    adapters.mkdir()
    for number, name in enumerate(("one", "two", "three", "four")):
        scaled_adapter(adapters / name, 1.0, number)
    config = scaled_adapter(adapters / "judge", 1.0, 5) / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "alora_invocation_tokens": INVOCATION}))
    torn = scaled_adapter(adapters / "torn", 1.0, 9) / "adapter_model.safetensors"
    torn.write_bytes(torn.read_bytes()[:-1000])
    shutil.copytree(data("starcoder2-bias.pattern"), adapters / "foreign")
    report = Report()
    options = ("--adapters-dir", adapters, "--adapter-memory", "3MB", "--kv-memory", "40MB", "--threads", 1)
    with serving(chat_model(folder), *options, "--parallel", 8, "--queue", 16) as server:
        load, pid = Load(server.url, report, seed), server.process.pid
        own = sockets(pid)

        async def client() -> None:
            for _ in range(a_round):
                await load.act()

        async def work() -> None:
            start = time.monotonic()
            while (
                len(report.samples) < rounds
                or time.monotonic() - start < seconds
                or (
                    len(report.samples) < 10 * rounds
                    and not all(report.answers[answer] for answer in answers)
                )
            ):
                await asyncio.gather(*(client() for _ in range(clients)))
                await idle(load)
                report.samples.append(counted(pid, time.monotonic() - start, own))

        asyncio.run(work())
        report.exit_code = server.stop()
    return report


async def idle(load: Load) -> None:
    """Until the server has noticed that clients left."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        answer = await load._ask("GET /health", "/health", None, method="GET")
        if b'"running":0,"waiting":0' in answer:
            await asyncio.sleep(0.1)
            return
        await asyncio.sleep(0.05)
    raise AssertionError("requests of clients that left are still running")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = soak(Path(folder), a.seconds, seed=a.seed)
    for answer, count in sorted(report.answers.items()):
        print(f"{count:8} {answer}")
    step = max(1, len(report.samples) // 20)
    for sample in report.samples[::step]:
        print(
            f"{sample.seconds:7.0f} s {sample.resident / 1e6:8.1f} MB {sample.threads:3} threads "
            f"{sample.descriptors:3} descriptors"
        )
    growth = report.growth()
    print(f"{len(report.samples)} rounds; grown once warm: {growth}; wrong: {len(report.wrong)}")
    for line in report.wrong[:20]:
        print(line)
    bad = growth["resident"] > 10e6 or growth["threads"] > 0 or growth["descriptors"] > 0
    if report.wrong or bad or report.exit_code not in STOPPED:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
