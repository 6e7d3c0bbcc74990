"""A load for servers of OpenAI's completions: clients that ask again and again, and what they saw."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import numpy as np

_TEXT = "the king of Judah spake unto his people and said what say you of bread and wine"
WORDS = _TEXT.split(" ")


@dataclass(frozen=True, slots=True)
class Load:
    """`clients` at once, for `seconds` after `warm` ones that do not count. Each prompt has `words` random words, each
    reply up to a random number of tokens out of `tokens`, so that requests begin and end at any time. With `adapters`
    K, client i asks for adapter i mod K by its number, as llama-server's API has it."""

    clients: int
    adapters: int = 0
    words: int = 32
    repeats: bool = False
    """Whether a prompt is the same text three times, the last time broken off, which a model then completes."""
    tokens: tuple[int, int] = (32, 96)
    warm: float = 1.5
    seconds: float = 8.0


@dataclass(slots=True)
class Seen:
    """When pieces came, by the clock; the first of each request after how long; the rate of each reply."""

    pieces: list[float] = field(default_factory=list)
    firsts: list[tuple[float, float]] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Figures:
    """What a load gave: tokens a second of all clients together, of one reply behind its first token (median), and
    seconds to the first token."""

    tokens_per_second: float
    of_a_reply: float
    first_p50: float
    first_p95: float
    requests: int


async def ask(url: str, body: dict[str, object], seen: Seen) -> None:
    """One streamed request."""
    place = urlsplit(url)
    data = json.dumps(body).encode()
    start = time.perf_counter()
    reader, writer = await asyncio.open_connection(place.hostname, place.port, limit=1 << 24)
    writer.write(
        f"POST /v1/completions HTTP/1.1\r\nhost: {place.netloc}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(data)}\r\nconnection: close\r\n\r\n".encode()
        + data
    )
    times: list[float] = []
    try:
        async for line in reader:
            if line.startswith(b"HTTP/") and b" 200 " not in line:
                raise RuntimeError((line + await reader.read()).decode(errors="replace")[:500])
            if line.startswith(b"data: {"):
                _take(line, times, seen)
    finally:
        writer.close()
    if times:
        seen.firsts.append((start, times[0] - start))
        seen.pieces += times
    if len(times) > 8:
        seen.rates.append((len(times) - 1) / (times[-1] - times[0]))


def _take(line: bytes, times: list[float], seen: Seen) -> None:
    """A piece's time; without taking JSON apart where it can be told, as that takes from the servers' processors."""
    if b'"usage":{' in line:
        seen.tokens += json.loads(line[6:])["usage"]["completion_tokens"]
    elif b'"error"' in line:
        raise RuntimeError(line.decode(errors="replace")[:500])
    elif b'"text":""' not in line:
        times.append(time.perf_counter())


def _prompt(random: np.random.Generator, load: Load) -> str:
    words = list(random.choice(WORDS, load.words))
    if not load.repeats:
        return " ".join(words)
    text = " ".join(words * 3)
    return f"{text}\n{text}\n{' '.join(words[:8])}"


async def run(url: str, load: Load) -> Figures:
    """Put `load` on the server at `url`."""
    seen = Seen()
    begin = time.perf_counter() + load.warm
    end = begin + load.seconds

    async def client(number: int) -> None:
        random = np.random.default_rng(number)
        while time.perf_counter() < end:
            body: dict[str, object] = {
                "model": "base",
                "prompt": _prompt(random, load),
                "max_tokens": int(random.integers(load.tokens[0], load.tokens[1] + 1)),
                "temperature": 0,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
            if load.adapters:
                body["lora"] = [{"id": number % load.adapters, "scale": 1.0}]
            await ask(url, body, seen)

    await asyncio.gather(*(client(number) for number in range(load.clients)))
    firsts = [first for start, first in seen.firsts if begin <= start] or [first for _, first in seen.firsts]
    per_piece = seen.tokens / len(seen.pieces)  # some tokens are parts of a character and come with the next
    measured = sum(begin <= at < end for at in seen.pieces)
    return Figures(
        measured * per_piece / load.seconds,
        float(np.median(seen.rates)) * per_piece if seen.rates else 0.0,
        float(np.percentile(firsts, 50)),
        float(np.percentile(firsts, 95)),
        len(firsts),
    )
