"""Running a model: tokens a second, loading and memory, beside llama.cpp's where `LLAMA_CPP_BIN` names its programs.

    LLAMA_CPP_BIN=BUILD/bin python bench/running.py [--types Q4_K_M,F16] [--threads N] [--layers N] [--repeat N] ...

Makes a model of Llama-3.2-1B's shape with fewer layers and a vocabulary of 32,000 (374 M weights with four layers)
and a LoRA of rank 16 on every linear, all random, and for each type runs ours and theirs in turn, N times each, and
prints the best of each figure. Without a LoRA theirs are llama-bench's; as that program takes no adapter, with one they
are llama-completion's, which generates behind the prompt, as then ours does. Private memory: without mapped files.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import child
import loragraft as lg
from engine import read_bandwidth
from loragraft.backends.batch import Piece
from loragraft.opening import open_model
from merge_memory import EXAMPLE, make_adapter, make_base

TYPES = "Q4_0,Q4_K_M,Q6_K,Q8_0,IQ4_XS,NVFP4,F16"
VOCABULARY = 32000


@dataclass(frozen=True)
class Speed:
    prompt: float
    """Tokens a second."""
    generation: float
    ready: float = 0.0
    """Seconds from the start of the process to the first token, of a short prompt."""
    peak: int = 0
    private: int = 0

    def best(self, other: Speed) -> Speed:
        return Speed(
            max(self.prompt, other.prompt),
            max(self.generation, other.generation),
            min(self.ready, other.ready),
            min(self.peak, other.peak),
            min(self.private, other.private),
        )


def ours(model: Path, adapter: Path | None, a: argparse.Namespace) -> Speed:
    words = [sys.executable, __file__, "--child", model, "--prompt", a.prompt, "--generate", a.generate]
    words += ["--threads", a.threads, *(["--adapter", adapter] if adapter else [])]
    run = child.run(words)
    return Speed(**json.loads(run.output), peak=run.peak, private=run.peak_private)


def run_ours(model: Path, adapter: Path | None, prompt: int, generate: int, threads: int) -> None:
    """In a process of its own: print the figures that only it knows."""
    loaded = lg.load(model, adapters=[adapter] if adapter else [], threads=threads)
    ids = np.random.default_rng(0).integers(2, 2000, prompt).astype(np.int32)
    program, adapters = loaded.program, loaded.adapters.active
    sequence = program.open_sequence()
    program.run([Piece(sequence, ids[:1], adapters)])
    ready = time.clock_gettime(time.CLOCK_BOOTTIME) - _started()
    best = {}
    for name, tokens, behind, parts in (
        ("prompt", prompt, 0, [ids]),
        ("generation", generate, prompt if adapter else 0, np.split(ids[:generate], generate)),
    ):
        seconds = []
        for _ in range(3):
            program.truncate_sequence(sequence, behind)
            start = time.perf_counter()
            for part in parts:
                program.run([Piece(sequence, part, adapters)])
            seconds.append(time.perf_counter() - start)
        best[name] = tokens / min(seconds)
    print(json.dumps({**best, "ready": ready}))


def _started() -> float:
    """When this process began, in seconds since the machine did."""
    ticks = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    return int(ticks) / os.sysconf("SC_CLK_TCK")


def theirs(binaries: Path, model: Path, adapter: Path | None, a: argparse.Namespace) -> Speed:
    if adapter is None:
        words = [binaries / "llama-bench", "-m", model, "-t", a.threads, "-r", 3, "-o", "json"]
        run = child.run([*words, "-p", a.prompt, "-n", a.generate])
        tests = json.loads(run.output[run.output.index("[") : run.output.rindex("]") + 1])
        best = {bool(test["n_prompt"]): max(test["samples_ts"]) for test in tests}
        return Speed(best[True], best[False], 0.0, run.peak, run.peak_private)
    # A token of the example's tokenizer is about three characters of this text.
    text = (EXAMPLE / "shakespeare-valid.txt").read_text()[: 3 * a.prompt]
    words = [
        binaries / "llama-completion",
        "-m",
        model,
        "--lora",
        adapter,
        "-t",
        a.threads,
        "-p",
        text,
        "-n",
        a.generate,
    ]
    run = child.run(
        [*words, "--temp", 0, "--ignore-eos", "-no-cnv", "--no-display-prompt", "-c", 2 * a.prompt]
    )
    found = re.findall(r" eval time = .* ([\d.]+) tokens per second", run.output)
    return Speed(*(float(speed) for speed in found), 0.0, run.peak, run.peak_private)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--types", default=TYPES)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--prompt", type=int, default=512, metavar="TOKENS")
    parser.add_argument("--generate", type=int, default=64, metavar="TOKENS")
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--no-lora", action="store_true")
    parser.add_argument("--folder", type=Path, default=None, help="where the files are made, and kept")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--adapter", type=Path, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.child:
        run_ours(a.child, a.adapter, a.prompt, a.generate, a.threads)
        return
    binaries = Path(os.environ["LLAMA_CPP_BIN"]) if "LLAMA_CPP_BIN" in os.environ else None
    with tempfile.TemporaryDirectory() as temporary:
        folder = a.folder or Path(temporary)
        base, adapter, lora = folder / "base", folder / "adapter", folder / "lora.gguf"
        if not lora.exists():
            make_base(base, a.layers, VOCABULARY)
            make_adapter(adapter, a.layers)
            lg.convert_adapter(adapter, base, lora)
        print(
            f"{a.threads} threads, prompt of {a.prompt}, {a.generate} generated; memory reads "
            f"{read_bandwidth(a.threads):.0f} GB/s"
        )
        print(
            "| type | LoRA | MB | prompt, t/s | llama.cpp | ratio | generation, t/s | llama.cpp | ratio | GB/s "
            "| first token, s | private MB | llama.cpp |"
        )
        print("|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|", flush=True)
        for kind in a.types.split(","):
            model = folder / f"{kind}.gguf"
            if not model.exists():
                lg.merge(base, [], model, type=kind)
            for active in [None] if a.no_lora else [None, lora]:
                print(row(kind, model, active, binaries, a), flush=True)


def row(kind: str, model: Path, adapter: Path | None, binaries: Path | None, a: argparse.Namespace) -> str:
    mine, peer = ours(model, adapter, a), None
    for turn in range(a.repeat):
        mine = mine.best(ours(model, adapter, a)) if turn else mine
        if binaries:
            try:
                other = theirs(binaries, model, adapter, a)
            except SystemExit:
                binaries = None  # it aborts on NVFP4 layers with an adapter
                continue
            peer = peer.best(other) if peer else other
    source = open_model(model)
    read = sum(t.n_rows * t.row_bytes for name, t in source.tensors.items() if name != "token_embd.weight")

    def beside(ours: float, theirs: float | None) -> list[str]:
        return [f"{ours:.0f}", *([f"{theirs:.0f}", f"{ours / theirs:.2f}"] if theirs else ["", ""])]

    cells = [kind, "r = 16" if adapter else "", f"{model.stat().st_size / 1e6:.0f}"]
    cells += beside(mine.prompt, peer and peer.prompt) + beside(mine.generation, peer and peer.generation)
    cells += [f"{mine.generation * read / 1e9:.0f}", f"{mine.ready:.2f}", f"{mine.private / 1e6:.0f}"]
    cells.append(f"{peer.private / 1e6:.0f}" if peer else "")
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
