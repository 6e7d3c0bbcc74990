"""What `loragraft serve` does under load, beside llama-server where one is given.

    python bench/serving.py PART MODEL.gguf --adapter PEFT --base FOLDER [--llama-server PATH] [--results FILE.json]

Parts: one (a client alone, beside `generate`), eight (clients, with an adapter each and without), pair (the former
only), sweep (1 to 32 clients), many (32 adapters in a batch, and none), thousand (adapters in a folder: memory, cold,
warm), lookup (texts that repeat themselves and others, guessing ahead and not). Both servers get the same requests over
HTTP, in turn; llama-server with its weights repacked and not, a slot for each client. The K adapters are the given one
with its B disturbed. Each part adds its rows to the results; `python bench/serving.py table --results FILE.json` prints
them as Markdown.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path

import numpy as np

from load_generator import WORDS, Figures, Load, run
from servers import LAYOUTS, Server, disturbed, ours, resident, theirs

PARTS = ["one", "eight", "pair", "sweep", "many", "thousand", "lookup", "table", "generate"]
Row = dict[str, str | int | float]
Start = Callable[[int], AbstractContextManager[Server]]


class Bench:
    """The servers of one run. `a`: the command line."""

    def __init__(self, a: argparse.Namespace, folder: Path) -> None:
        self.a, self.folder = a, folder

    def adapters(self, count: int) -> list[Path]:
        return disturbed(self.a.adapter, self.a.base or self.a.model, self.folder, count)

    def servers(self, adapters: list[Path]) -> dict[str, Start]:
        a = self.a
        found: dict[str, Start] = {"loragraft": lambda slots: ours(a.model, adapters, a.threads)}
        if a.llama_server:
            for name, layout in list(LAYOUTS.items())[: a.layouts]:
                found[name] = lambda slots, layout=layout: theirs(  # type: ignore[misc]
                    a.llama_server, a.model, adapters, a.threads, slots, layout
                )
        return found

    def compare(self, part: str, loads: list[Load], adapters: list[Path]) -> Iterator[Row]:
        """Every server under every load, in `turns` turns; the best of the turns."""
        best: dict[tuple[str, Load], Figures] = {}
        for _ in range(self.a.turns):
            for name, start in self.servers(adapters).items():
                with start(max(load.clients for load in loads)) as server:
                    for load in loads:
                        got = asyncio.run(run(server.url, load))
                        kept = best.get((name, load))
                        if kept is None or got.tokens_per_second > kept.tokens_per_second:
                            best[name, load] = got
                        busy = Path("/proc/loadavg").read_text().split()[0]
                        print(part, name, load.clients, load.adapters, got, busy, file=sys.stderr, flush=True)
        for (name, load), got in best.items():
            yield {
                "part": part,
                "server": name,
                "clients": load.clients,
                "adapters": load.adapters,
                **asdict(got),
            }

    # ---- the parts ----

    def one(self) -> Iterator[Row]:
        yield from self.compare("one", [self.load(1)], [])
        words = [sys.executable, __file__, "generate", str(self.a.model), "--threads", str(self.a.threads)]
        said = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        yield {"part": "one", "server": "generate", "clients": 1, "adapters": 0, "of_a_reply": float(said)}

    def eight(self) -> Iterator[Row]:
        yield from self.compare("eight", [self.load(8, 8), self.load(8)], self.adapters(8))

    def pair(self) -> Iterator[Row]:
        yield from self.compare("pair", [self.load(8, 8)], self.adapters(8))

    def sweep(self) -> Iterator[Row]:
        yield from self.compare("sweep", [self.load(clients) for clients in self.a.clients], [])

    def many(self) -> Iterator[Row]:
        self.a.llama_server = None
        yield from self.compare("many", [self.load(32, 32), self.load(32)], self.adapters(32))

    def lookup(self) -> Iterator[Row]:
        for name, more in (("loragraft", []), ("loragraft --no-lookup", ["--no-lookup"])):
            with ours(self.a.model, [], self.a.threads, *more) as server:
                for repeats in (True, False):
                    load = Load(1, repeats=repeats, seconds=self.a.seconds)
                    got = asyncio.run(run(server.url, load))
                    what = "repeating" if repeats else "other"
                    yield {
                        "part": "lookup",
                        "server": f"{name}, {what}",
                        "clients": 1,
                        "adapters": 0,
                        **asdict(got),
                    }

    def thousand(self) -> Iterator[Row]:
        """1,000 names in a watched folder, most of them links to the same files: each is read and kept by itself."""
        files, names = self.adapters(8), self.folder / "thousand"
        names.mkdir(exist_ok=True)
        for number in range(1000):
            if not (link := names / f"n{number}.gguf").exists():
                os.link(files[number % len(files)], link)
        bound = self.a.adapter_memory
        more = ["--adapters-dir", str(names), "--adapter-memory", str(bound)]
        random = np.random.default_rng(0)
        with ours(self.a.model, [], self.a.threads) as server:
            for number in range(60):
                first_token(server.url, "base", number)
            base = resident(server.pid)
        with ours(self.a.model, [], self.a.threads, *more) as server:
            wait_for_adapters(server.url, 1000)
            order = random.permutation(1000)[:80]
            cold = [first_token(server.url, f"n{number}", 1000 + number) for number in order]
            warm = [first_token(server.url, f"n{order[-1]}", 2000 + number) for number in range(20)]
            yield {
                "part": "thousand",
                "adapter_memory": bound,
                "base": base,
                "resident": resident(server.pid),
                "cold_p50": float(np.median(cold)),
                "cold_p95": float(np.percentile(cold, 95)),
                "warm_p50": float(np.median(warm)),
            }

    def load(self, clients: int, adapters: int = 0) -> Load:
        a = self.a
        return Load(clients, adapters, a.words, tokens=tuple(a.tokens), warm=a.warm, seconds=a.seconds)


def first_token(url: str, model: str, seed: int) -> float:
    """Seconds until the first token of a short reply to a prompt of its own."""
    from urllib.request import Request, urlopen

    prompt = " ".join(np.random.default_rng(seed).choice(WORDS, 24))
    body = {"model": model, "prompt": prompt, "max_tokens": 1, "temperature": 0}
    start = time.perf_counter()
    with urlopen(Request(f"{url}/v1/completions", json.dumps(body).encode())) as answer:
        answer.read()
    return time.perf_counter() - start


def wait_for_adapters(url: str, count: int) -> None:
    from urllib.request import urlopen

    end = time.monotonic() + 60
    while time.monotonic() < end:
        with urlopen(f"{url}/v1/models") as answer:
            if len(json.load(answer)["data"]) > count:
                return
        time.sleep(0.2)
    raise RuntimeError(f"the server does not list {count} adapters")


def generate(model: Path, threads: int) -> float:
    """Tokens a second of `Model.generate`, behind the first token; the best of three."""
    import loragraft as lg

    loaded = lg.load(model, threads=threads)
    best = 0.0
    for seed in range(4):
        prompt = " ".join(np.random.default_rng(seed).choice(WORDS, 32))
        times = [time.perf_counter() for _ in loaded.generate(prompt, max_tokens=96, temperature=0)]
        if len(times) > 8:
            best = max(best, (len(times) - 1) / (times[-1] - times[0]))
    return best


# ---- the table ----


def table(rows: list[Row]) -> Iterator[str]:
    """Markdown of what the parts measured."""
    yield "| clients | adapters | | tokens/s | of a reply | first token p50, s | p95, s |"
    yield "|--:|--:|---|--:|--:|--:|--:|"
    for row in rows:
        if row["part"] != "thousand":
            figures = [
                f"{row[name]:.{digits}f}" if name in row else ""
                for name, digits in (
                    ("tokens_per_second", 0),
                    ("of_a_reply", 0),
                    ("first_p50", 3),
                    ("first_p95", 3),
                )
            ]
            cells = [str(row["clients"]), str(row["adapters"]), str(row["server"]), *figures]
            yield f"| {' | '.join(cells)} |"
    for row in rows:
        if row["part"] == "thousand":
            yield ""
            yield "| 1,000 adapters registered | |"
            yield "|---|--:|"
            yield f"| resident without adapters, MB | {row['base'] / 1e6:.0f} |"  # type: ignore[operator]
            yield f"| resident after 80 of them, MB | {row['resident'] / 1e6:.0f} |"  # type: ignore[operator]
            yield f"| --adapter-memory, MB | {row['adapter_memory'] / 1e6:.0f} |"  # type: ignore[operator]
            yield f"| first token, warm, s | {row['warm_p50']:.3f} |"
            yield f"| cold, p50 and p95, s | {row['cold_p50']:.3f}, {row['cold_p95']:.3f} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--adapter", type=Path, help="a PEFT folder")
    parser.add_argument("--base", type=Path, help="the folder it was trained on")
    parser.add_argument("--llama-server", type=Path)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seconds", type=float, default=6.0, help="that each load is measured for")
    parser.add_argument("--warm", type=float, default=1.5, help="seconds before that")
    parser.add_argument("--words", type=int, default=32, help="of a prompt")
    parser.add_argument("--tokens", type=int, nargs=2, default=[32, 96], help="of a reply, least and most")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32], help="of sweep")
    parser.add_argument(
        "--layouts", type=int, default=2, help="how many of llama-server's: 1 is repacked only"
    )
    parser.add_argument("--adapter-memory", type=int, default=400_000_000)
    parser.add_argument("--folder", type=Path, help="where adapters are made, and kept")
    parser.add_argument("--results", type=Path)
    a = parser.parse_args()
    rows: list[Row] = json.loads(a.results.read_text()) if a.results and a.results.exists() else []
    if a.part == "generate":
        print(generate(a.model, a.threads))
        return
    if a.part != "table":
        with tempfile.TemporaryDirectory() as temporary:
            new = list(getattr(Bench(a, a.folder or Path(temporary)), a.part)())
        rows = [row for row in rows if row["part"] != a.part] + new
        if a.results:
            a.results.write_text(json.dumps(rows, indent=1))
    print("\n".join(table(rows if a.part == "table" else new)))


if __name__ == "__main__":
    main()
