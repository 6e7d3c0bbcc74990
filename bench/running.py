"""Running a model beside llama.cpp in its better setting: prompts, generation, long contexts, sequences together.

    LLAMA_CPP_BIN=BUILD/bin python bench/running.py MODEL.gguf ... [--tests prompt,long,eight] [--repeat N] ...

llama.cpp is measured with weights repacked (its default) and as stored, each with and without flash attention; per
figure and setting of the weights the better of the two counts. Ours and theirs run in turn, N times; each figure is the
best. `--make TYPE` makes a random model of Llama-3.2-1B's shape with a vocabulary of 32,000 (1.1 G weights) in
`--folder` and measures it. Tests:

    prompt    512 tokens; then tokens one by one (llama-bench)
    long      4096 tokens; then tokens behind them (llama-batched-bench)
    eight     eight sequences in one batch, beside one of the same length (llama-batched-bench)
    adapters  eight sequences with eight different adapters (r = 16, every linear); llama.cpp has nothing to compare
    lora      512 tokens under an adapter, then tokens behind them (llama-completion)
    f32       as `long`, with keys and values in F32; ours alone
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

import child
import loragraft as lg
from engine import read_bandwidth
from loragraft.adapters.lora import Adapter, LoraPair
from loragraft.archs.graphs import model_graph
from loragraft.backends.batch import AdapterSet, Piece
from loragraft.backends.cpu.program import NativeBackend
from loragraft.backends.program import Options
from loragraft.opening import open_model
from merge_memory import EXAMPLE, make_adapter, make_base

PROMPT, LONG, SHORT = 512, 4096, 32
LAYERS, VOCABULARY, RANK = 16, 32000, 16
TESTS = ("prompt", "long", "eight", "adapters")

Figures = dict[str, float]
"""Tokens a second by what was measured; `ready` in seconds, `private` in bytes."""

LOWER_IS_BETTER = {"ready", "private"}


def better(a: Figures, b: Figures) -> Figures:
    """The better of each figure."""
    return {
        name: (min if name in LOWER_IS_BETTER else max)(
            v for v in (a.get(name), b.get(name)) if v is not None
        )
        for name in {**a, **b}
    }


# ---- ours ----


def ours(model: Path, a: argparse.Namespace) -> Figures:
    """In a process of its own, which tells how soon it is ready and what it takes."""
    words = [sys.executable, __file__, "--child", model, "--tests", a.tests, "--threads", a.threads]
    run = child.run([*words, "--generate", a.generate, *(["--lora", a.lora] if a.lora else [])])
    return {**json.loads(run.output.splitlines()[-1]), "private": run.peak_private}


class Runner:
    """Times pieces of work on one program."""

    def __init__(self, model: Path, a: argparse.Namespace, **options: Any) -> None:
        self.source, self.generate = open_model(model), a.generate
        chosen = Options(threads=a.threads, **options)
        self.program = NativeBackend().prepare(model_graph(self.source), self.source.tensors, chosen)
        self.ids = np.random.default_rng(0).integers(2, 2000, LONG).astype(np.int32)

    def seconds(self, pieces: list[list[Piece]]) -> float:
        start = time.perf_counter()
        for batch in pieces:
            self.program.run(batch)
        return time.perf_counter() - start

    def prompt(self, tokens: int, repeat: int, adapters: AdapterSet = ()) -> tuple[float, int]:
        """Tokens a second of a prompt, and a sequence that holds it."""
        sequence, best = self.program.open_sequence(), 0.0
        for _ in range(repeat):
            self.program.truncate_sequence(sequence, 0)
            best = max(best, tokens / self.seconds([[Piece(sequence, self.ids[:tokens], adapters)]]))
        return best, sequence

    def tokens(self, sequences: list[int], repeat: int, sets: list[AdapterSet] | None = None) -> float:
        """Tokens a second of all sequences together, one of each at a time."""
        lengths = [self.program.length(sequence) for sequence in sequences]
        sets, best = sets or [()] * len(sequences), 0.0
        steps = [
            [Piece(s, self.ids[i : i + 1], own) for s, own in zip(sequences, sets, strict=True)]
            for i in range(self.generate)
        ]
        for _ in range(repeat):
            for sequence, length in zip(sequences, lengths, strict=True):
                self.program.truncate_sequence(sequence, length)
            best = max(best, self.generate * len(sequences) / self.seconds(steps))
        return best

    def adapter(self, seed: int) -> int:
        """A slot with a random adapter on every linear of the layers, stored as PEFT stores one trained in BF16."""
        rng, pairs = np.random.default_rng(seed), {}
        for name, tensor in self.source.tensors.items():
            if re.fullmatch(r"blk\.\d+\.(attn_(q|k|v|output)|ffn_(gate|up|down))\.weight", name):
                shapes = (RANK, tensor.columns), (tensor.n_rows, RANK)
                a, b = (rng.standard_normal(shape, np.float32) * np.float32(0.02) for shape in shapes)
                pairs[name] = LoraPair(name, _bfloat(a), _bfloat(b), 2.0)
        return self.program.add_adapter(Adapter(Path(f"random {seed}"), pairs=pairs))


def _bfloat(x: np.ndarray[Any, np.dtype[np.float32]]) -> np.ndarray[Any, np.dtype[np.float32]]:
    return (x.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def run_ours(model: Path, a: argparse.Namespace) -> Figures:
    tests, found = a.tests.split(","), Figures()
    runner = Runner(model, a)
    first = runner.program.open_sequence()
    runner.program.run([Piece(first, runner.ids[:1])])
    found["ready"] = time.clock_gettime(time.CLOCK_BOOTTIME) - _started()
    if "prompt" in tests:
        found["prompt"], _ = runner.prompt(PROMPT, 3)
        runner.program.truncate_sequence(first, 0)
        found["generation"] = runner.tokens([first], 3)
    if "eight" in tests or "adapters" in tests:
        eight = [runner.prompt(SHORT, 1)[1] for _ in range(8)]
        found["one"] = runner.tokens(eight[:1], 3)
        found["eight"] = runner.tokens(eight, 3)
        if "adapters" in tests:
            sets: list[AdapterSet] = [((runner.adapter(seed), 1.0),) for seed in range(8)]
            found["adapters"] = runner.tokens(eight, 3, sets)
            found["eight"] = max(found["eight"], runner.tokens(eight, 2))  # before and after
            found["adapters"] = max(found["adapters"], runner.tokens(eight, 2, sets))
    if "lora" in tests:
        slot = ((runner.adapter(0), 1.0),)
        found["prompt, LoRA"], sequence = runner.prompt(PROMPT, 3, slot)
        found["generation, LoRA"] = runner.tokens([sequence], 3, [slot])
    if "long" in tests:
        found["long prompt"], sequence = runner.prompt(LONG, 1)
        found["generation behind it"] = runner.tokens([sequence], 2)
    if "f32" in tests:
        runner = Runner(model, a, keys_values="f32")
        found["long prompt, F32"], sequence = runner.prompt(LONG, 1)
        found["generation behind it, F32"] = runner.tokens([sequence], 2)
    return found


def _started() -> float:
    """When this process began, in seconds since the machine did."""
    ticks = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    return int(ticks) / os.sysconf("SC_CLK_TCK")


# ---- theirs ----


def theirs(binaries: Path, model: Path, repack: bool, a: argparse.Namespace) -> Figures:
    """The better figures with and without flash attention."""
    tests, found = a.tests.split(","), Figures()
    if "prompt" in tests:
        flash = ",".join("1" if word == "on" else "0" for word in a.flash.split(","))
        words = [binaries / "llama-bench", "-m", model, "-t", a.threads, "-r", 2, "-o", "json", "-fa", flash]
        run = child.run([*words, "-p", PROMPT, "-n", a.generate, "--repack", int(repack)])
        for test in json.loads(run.output[run.output.index("[") : run.output.rindex("]") + 1]):
            name = "prompt" if test["n_prompt"] else "generation"
            found = better(found, {name: max(test["samples_ts"])})
        found["private"] = run.peak_private
    for attention in a.flash.split(","):
        common = ["-m", model, "-t", a.threads, "-fa", attention, *([] if repack else ["--no-repack"])]
        batched = [binaries / "llama-batched-bench", *common, "-ntg", a.generate, "--output-format", "jsonl"]
        if "eight" in tests or "adapters" in tests:
            for test in _jsonl(child.run([*batched, "-c", 2048, "-npp", SHORT, "-npl", "1,8"]).output):
                found = better(found, {"one" if test["pl"] == 1 else "eight": test["speed_tg"]})
        if "long" in tests:
            context = LONG + a.generate
            for test in _jsonl(child.run([*batched, "-c", context, "-npp", LONG, "-npl", 1]).output):
                speeds = {"long prompt": test["speed_pp"], "generation behind it": test["speed_tg"]}
                found = better(found, speeds)
        if "lora" in tests and a.lora:
            found = better(found, _with_lora(binaries, common, a))
    return found


def _with_lora(binaries: Path, common: list[object], a: argparse.Namespace) -> Figures:
    # A token of the example's tokenizer is about three characters of this text.
    text = (EXAMPLE / "shakespeare-valid.txt").read_text()[: 3 * PROMPT]
    words = [binaries / "llama-completion", *common, "--lora", a.lora, "-p", text, "-n", a.generate]
    run = child.run([*words, "--temp", 0, "--ignore-eos", "-no-cnv", "--no-display-prompt", "-c", 2 * PROMPT])
    found = re.findall(r" eval time = .* ([\d.]+) tokens per second", run.output)
    return dict(zip(("prompt, LoRA", "generation, LoRA"), map(float, found), strict=True))


def _jsonl(output: str) -> Iterator[dict[str, Any]]:
    yield from (json.loads(line) for line in output.splitlines() if line.startswith("{"))


# ---- the table ----


def measure(model: Path, binaries: Path | None, a: argparse.Namespace) -> Iterator[str]:
    """The lines of one model's table."""
    settings = [(True, "repacked"), (False, "as stored")] if binaries else []
    mine, peer = Figures(), {name: Figures() for _, name in settings}
    for _ in range(a.repeat):
        mine = better(mine, ours(model, a))
        for (repack, name), path in product(settings, [binaries] if binaries else []):
            peer[name] = better(peer[name], theirs(path, model, repack, a))
    yield f"\n{model.name}: {model.stat().st_size / 1e6:.0f} MB\n"
    yield f"| | loragraft | {' | '.join(f'llama.cpp, {name}' for name in peer)} | to the better |"
    yield f"|---|--:|{'--:|' * len(peer)}--:|"
    for name in mine:
        if name in LOWER_IS_BETTER:
            continue
        speeds = [figures.get(name) for figures in peer.values()]
        known = [speed for speed in speeds if speed]
        cells = [name, f"{mine[name]:.1f}", *(f"{speed:.1f}" if speed else "" for speed in speeds)]
        yield f"| {' | '.join([*cells, f'{mine[name] / max(known):.2f}' if known else ''])} |"
    for whole, part in (("one", "eight"), ("eight", "adapters")):
        if part in mine:
            yield f"\n{part} / {whole}: {mine[part] / mine[whole]:.2f}"
            best = [p[part] / p[whole] for p in peer.values() if part in p and whole in p]
            yield f"  (llama.cpp {', '.join(f'{ratio:.2f}' for ratio in best)})" if best else ""
    private = [
        f"{name} {figures['private'] / 1e6:.0f}" for name, figures in peer.items() if "private" in figures
    ]
    yield f"\nfirst token after {mine['ready']:.2f} s; private MB: {mine['private'] / 1e6:.0f}"
    yield f"  (llama.cpp {', '.join(private)})" if private else ""


def make(kind: str, folder: Path) -> Path:
    base, model = folder / "base", folder / f"{kind}.gguf"
    if not base.exists():
        make_base(base, LAYERS, VOCABULARY)
        make_adapter(folder / "adapter", LAYERS)
        lg.convert_adapter(folder / "adapter", base, folder / "lora.gguf")
    if not model.exists():
        lg.merge(base, [], model, type=kind)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--make", action="append", default=[], metavar="TYPE")
    parser.add_argument("--folder", type=Path, help="where models are made, and kept")
    parser.add_argument("--tests", default=",".join(TESTS))
    parser.add_argument("--lora", type=Path, help="an adapter in GGUF, for llama.cpp in the test `lora`")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--generate", type=int, default=32, metavar="TOKENS")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--flash", default="on,off", help="llama.cpp's settings of flash attention to try")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.child:
        print(json.dumps(run_ours(a.child, a)))
        return
    binaries = Path(os.environ["LLAMA_CPP_BIN"]) if "LLAMA_CPP_BIN" in os.environ else None
    with tempfile.TemporaryDirectory() as temporary:
        folder = a.folder or Path(temporary)
        models = [*a.models, *(make(kind, folder) for kind in a.make)]
        print(f"{a.threads} threads; memory reads {read_bandwidth(a.threads):.0f} GB/s", flush=True)
        for model in models:
            for line in measure(model, binaries, a):
                print(line, flush=True)


if __name__ == "__main__":
    main()
