"""Generation while other processes keep the processors busy, beside the same on a machine of one's own.

    [LLAMA_CPP_BIN=BUILD/bin] python bench/competition.py MODEL.gguf ... [--competitors 0,1,2] [--threads N]

A competitor is a process that computes without end at the same priority. A fair share is what is left of the processors
when every thread, ours and theirs, gets as much as the next. Each figure is the median of some runs, taken in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import child
from running import SHORT, Runner


@contextmanager
def competitors(count: int) -> Iterator[None]:
    """So many processes that compute without end."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def fair_share(threads: int, count: int) -> float:
    """Of the speed on a quiet machine: each thread gets as much as the next, and no more than a processor."""
    return min(1.0, len(os.sched_getaffinity(0)) / (threads + count))


def ours(model: Path, counts: list[int], threads: int, repeat: int) -> dict[str, list[float]]:
    """Tokens a second of one sequence and of eight, by number of competitors."""
    runner = Runner(model, Namespace(threads=threads, generate=32))
    eight = [runner.prompt(SHORT, 1)[1] for _ in range(8)]
    found: dict[str, list[list[float]]] = {"generation": [[] for _ in counts], "eight": [[] for _ in counts]}
    for _ in range(repeat):
        for i, count in enumerate(counts):
            with competitors(count):
                found["generation"][i].append(runner.tokens(eight[:1], 1))
                found["eight"][i].append(runner.tokens(eight, 1))
    return {name: [statistics.median(runs) for runs in by_count] for name, by_count in found.items()}


def theirs(binaries: Path, model: Path, counts: list[int], threads: int, repeat: int) -> list[float]:
    """llama-bench's generation, by number of competitors."""
    found: list[list[float]] = [[] for _ in counts]
    words = [binaries / "llama-bench", "-m", model, "-t", threads, "-r", 1, "-o", "json", "-p", 0, "-n", 32]
    for _ in range(repeat):
        for i, count in enumerate(counts):
            with competitors(count):
                output = child.run(words).output
            (test,) = json.loads(output[output.index("[") : output.rindex("]") + 1])
            found[i].append(test["avg_ts"])
    return [statistics.median(runs) for runs in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--competitors", default="0,1,2", help="how many, separated by commas; 0 comes first")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeat", type=int, default=5)
    a = parser.parse_args()
    counts = [int(word) for word in a.competitors.split(",")]
    binaries = Path(os.environ["LLAMA_CPP_BIN"]) if "LLAMA_CPP_BIN" in os.environ else None
    shares = " | ".join(f"{count}: {fair_share(a.threads, count):.2f}" for count in counts)
    print(f"{a.threads} threads; a fair share by number of competitors: {shares}\n")
    for model in a.models:
        rows = ours(model, counts, a.threads, a.repeat)
        if binaries:
            rows["llama.cpp, generation"] = theirs(binaries, model, counts, a.threads, a.repeat)
        print(f"{model.name}, t/s | {' | '.join(map(str, counts))} |\n|---|{'--:|' * len(counts)}")
        for name, speeds in rows.items():
            cells = [f"{speed:.1f} ({speed / speeds[0]:.2f})" for speed in speeds]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
