"""Tokens a second and time to first token of `loragraft serve`, beside llama-server where one is given.

    python bench/serving.py MODEL.gguf --adapter ADAPTER [--llama-server PATH] [--clients 1 8 32] [--adapters 8]

Both servers get the same requests, in turn, over HTTP: `clients` at once, each with a prompt of its own, streamed and
greedy. With --adapters K, client i asks for adapter i mod K by its number, as llama-server's API has it; the K adapters
are the given one with its B disturbed. Prints one row a server and setting.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

_TEXT = "the king of Judah spake unto his people and said what say you of bread and wine"
WORDS = _TEXT.split(" ")


@dataclass(frozen=True, slots=True)
class Figures:
    """What a load gave."""

    tokens_per_second: float
    first_p50: float
    first_p95: float
    tokens: int


async def ask(url: str, body: dict[str, object]) -> tuple[float, float, int]:
    """Seconds to the first piece, seconds in all, tokens made."""
    place = urlsplit(url)
    data = json.dumps(body).encode()
    start = time.perf_counter()
    reader, writer = await asyncio.open_connection(place.hostname, place.port, limit=1 << 24)
    writer.write(
        f"POST /v1/completions HTTP/1.1\r\nhost: {place.netloc}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(data)}\r\nconnection: close\r\n\r\n".encode()
        + data
    )
    first, made = 0.0, 0
    async for line in reader:
        if line.startswith(b"HTTP/") and b" 200 " not in line:
            raise RuntimeError((line + await reader.read()).decode(errors="replace")[:500])
        if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
            continue
        chunk = json.loads(line[6:])
        if "error" in chunk:
            raise RuntimeError(str(chunk))
        if chunk.get("choices") and chunk["choices"][0]["text"]:
            first = first or time.perf_counter() - start
        if chunk.get("usage"):
            made = chunk["usage"]["completion_tokens"]
    writer.close()
    return first or time.perf_counter() - start, time.perf_counter() - start, made


async def load(url: str, clients: int, requests: int, length: int, tokens: int, adapters: int) -> Figures:
    """`clients` at once, each with `requests` requests one after the other."""
    firsts: list[float] = []
    made = 0

    async def client(number: int) -> None:
        nonlocal made
        random = np.random.default_rng(number)
        for _ in range(requests):
            body: dict[str, object] = {
                "model": "base",
                "prompt": " ".join(random.choice(WORDS, length)),
                "max_tokens": tokens,
                "temperature": 0,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
            if adapters:
                body["lora"] = [{"id": number % adapters, "scale": 1.0}]
            first, _, count = await ask(url, body)
            firsts.append(first)
            made += count

    start = time.perf_counter()
    await asyncio.gather(*(client(number) for number in range(clients)))
    seconds = time.perf_counter() - start
    ordered = sorted(firsts)
    return Figures(
        made / seconds,
        statistics.median(ordered),
        ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))],
        made,
    )


@contextmanager
def ours(model: Path, adapters: list[Path], threads: int) -> Iterator[str]:
    command = [sys.executable, "-m", "loragraft", "serve", str(model), "--port", "0", "--alias", "base"]
    command += ["--threads", str(threads)]
    for number, path in enumerate(adapters):
        command += ["--lora", f"a{number}={path}"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if found := re.search(r"listening on (http://\S+)", line):
                yield found[1]
                break
        else:
            raise RuntimeError("the server did not start")
    finally:
        process.terminate()
        process.wait(60)


@contextmanager
def theirs(
    server: Path, model: Path, adapters: list[Path], threads: int, slots: int, more: list[str]
) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(server), "-m", str(model), "--port", str(port), "--host", "127.0.0.1", "-t", str(threads)]
    command += [
        "-tb",
        str(threads),
        "-np",
        str(slots),
        "-c",
        str(1024 * slots),
        "--no-webui",
        "-a",
        "base",
        *more,
    ]
    if adapters:
        command += ["--lora-init-without-apply", "--lora", ",".join(map(str, adapters))]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 120
        while time.monotonic() < end:
            try:
                with socket.create_connection(("127.0.0.1", port), 1) as probe:
                    probe.sendall(b"GET /health HTTP/1.0\r\n\r\n")
                    if b" 200 " in probe.recv(100):
                        break
            except OSError:
                pass
            if process.poll() is not None:
                raise RuntimeError("llama-server did not start")
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


def disturbed(adapter: Path, base: Path, folder: Path, count: int) -> list[Path]:
    """`count` adapters as GGUF: the given one, B multiplied by noise of its own."""
    import loragraft as lg
    from loragraft.formats.gguf.model import open_gguf  # noqa: F401 (the converter's output is read by it)

    made = []
    for number in range(count):
        copy = folder / f"peft{number}"
        copy.mkdir()
        for file in adapter.iterdir():
            if file.suffix == ".safetensors":
                _disturb(file, copy / file.name, number)
            elif file.is_file():
                (copy / file.name).write_bytes(file.read_bytes())
        path = folder / f"adapter{number}.gguf"
        lg.convert_adapter(copy, base, path)
        made.append(path)
    return made


def _disturb(source: Path, target: Path, seed: int) -> None:
    from safetensors.numpy import load_file, save_file

    random = np.random.default_rng(seed)
    weights = load_file(source)
    for name, array in weights.items():
        if "lora_B" in name:
            weights[name] = (array * (1 + 0.2 * random.standard_normal(array.shape))).astype(array.dtype)
    save_file(weights, target)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument(
        "--adapter", type=Path, help="a PEFT folder; with --base the folder it was trained on"
    )
    parser.add_argument("--base", type=Path)
    parser.add_argument("--llama-server", type=Path)
    parser.add_argument("--adapters", type=int, default=0)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--requests", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=32, help="words of a prompt")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeat", type=int, default=1)
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        adapters = []
        if args.adapters:
            adapters = disturbed(args.adapter, args.base or args.model, Path(folder), args.adapters)
        servers = {"loragraft": lambda: ours(args.model, adapters, args.threads)}
        if args.llama_server:
            slots = max(args.clients)
            for name, more in {"llama-server": [], "llama-server --no-repack": ["--no-repack"]}.items():
                servers[name] = lambda more=more: theirs(
                    args.llama_server, args.model, adapters, args.threads, slots, more
                )
        print(
            f"{'server':26} {'clients':>7} {'adapters':>8} {'tokens/s':>9} {'first p50':>9} {'first p95':>9}"
        )
        for _ in range(args.repeat):
            for name, server in servers.items():
                with server() as url:
                    asyncio.run(load(url, 1, 1, 8, 8, 0))  # warm
                    for clients in args.clients:
                        for used in sorted({0, args.adapters}):
                            got = asyncio.run(
                                load(url, clients, args.requests, args.prompt, args.tokens, used)
                            )
                            print(
                                f"{name:26} {clients:7} {used:8} {got.tokens_per_second:9.1f} "
                                f"{got.first_p50:8.3f}s {got.first_p95:8.3f}s",
                                flush=True,
                            )


if __name__ == "__main__":
    main()
