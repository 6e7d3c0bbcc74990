"""Speed and memory of `loragraft quantize`, beside llama-quantize's where `LLAMA_QUANTIZE` names one, and beside `cp`.

    python bench/quantize.py [--types Q4_K_M,Q8_0] [--matrix both] [--repeat N] [--threads N] [--folder DIR] ...

Makes an F16 model of Llama-3.2-1B's shape with four layers (506 M weights) of random weights in DIR, and quantizes it
to each type, without and with an importance matrix: from the page cache, with nothing left to be written to the disk,
ours the best of N, theirs once between ours. The times are of whole processes; "pass" is ours without the start of
Python. `cp` copies a file of half the bytes that are read and written, and so moves as many; it flushes nothing to the
disk, as llama-quantize does not, while ours does.

What was measured is kept in DIR/results-*.jsonl, and is not measured again: a bench that was cut off goes on, and the
table at the end is of all. Remove a line to have it measured anew.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

import child
from loragraft import _native
from loragraft.formats.gguf.values import Metadata, Value
from loragraft.formats.gguf.writer import GGUFWriter, TensorSpec
from loragraft.formats.imatrix import Imatrix
from loragraft.quants.types import F16, F32

TYPES = "Q2_K,Q3_K_S,Q3_K_M,Q3_K_L,Q4_K_S,Q4_K_M,Q5_K_S,Q5_K_M,Q6_K,IQ4_NL,IQ4_XS,Q8_0,Q4_0,F16,BF16"
#: Types that an importance matrix makes no difference to.
WITHOUT_MATRIX = ("Q8_0", "F16", "BF16")
WIDTH, FFN, VOCABULARY, KV_WIDTH = 2048, 8192, 128256, 512

#: (out, in) of a layer's linear weights.
LAYER = {
    "attn_q": (WIDTH, WIDTH),
    "attn_k": (KV_WIDTH, WIDTH),
    "attn_v": (KV_WIDTH, WIDTH),
    "attn_output": (WIDTH, WIDTH),
    "ffn_gate": (FFN, WIDTH),
    "ffn_up": (FFN, WIDTH),
    "ffn_down": (WIDTH, FFN),
}


def specs(layers: int) -> list[TensorSpec]:
    tensors = [TensorSpec("token_embd.weight", (VOCABULARY, WIDTH), F16)]
    tensors += [TensorSpec("output_norm.weight", (WIDTH,), F32)]
    for i in range(layers):
        tensors += [TensorSpec(f"blk.{i}.{name}.weight", shape, F16) for name, shape in LAYER.items()]
        tensors += [TensorSpec(f"blk.{i}.{name}_norm.weight", (WIDTH,), F32) for name in ("attn", "ffn")]
    return tensors


def make_model(path: Path, layers: int) -> int:
    """Write the model, unless it is there; the number of its weights."""
    tensors = specs(layers)
    metadata: Metadata = {
        "general.architecture": Value.string("llama"),
        "general.name": Value.string("random weights"),
        "llama.block_count": Value.u32(layers),
        "llama.context_length": Value.u32(131072),
        "llama.embedding_length": Value.u32(WIDTH),
        "llama.feed_forward_length": Value.u32(FFN),
        "llama.attention.head_count": Value.u32(32),
        "llama.attention.head_count_kv": Value.u32(8),
        "llama.attention.layer_norm_rms_epsilon": Value.f32(1e-5),
        "llama.rope.freq_base": Value.f32(500000.0),
        "llama.vocab_size": Value.u32(VOCABULARY),
        "general.file_type": Value.u32(1),
    }
    if not path.exists():
        rng = np.random.default_rng(0)
        with GGUFWriter(path, metadata, tensors) as writer:
            for spec in tensors:
                rows = max(1, (1 << 22) // spec.shape[-1])
                for start in range(0, spec.nbytes, rows * spec.type.row_bytes(spec.shape[-1])):
                    count = min(rows * spec.shape[-1], (spec.nbytes - start) // spec.type.bytes)
                    values = rng.standard_normal(count, dtype=np.float32) * np.float32(0.02)
                    writer.write(
                        spec.name, start, values.astype(np.float16 if spec.type is F16 else np.float32)
                    )
    return sum(int(np.prod(spec.shape)) for spec in tensors)


def make_imatrix(path: Path, layers: int) -> None:
    rng = np.random.default_rng(1)
    columns = {f"blk.{i}.{name}.weight": shape[1] for i in range(layers) for name, shape in LAYER.items()}
    sums = {
        name: rng.gamma(0.5, 1.0, (1, count)).astype(np.float32) + 1e-4 for name, count in columns.items()
    }
    Imatrix(sums, {name: np.full(1, 100) for name in columns}, ["random"], 1, 512).save_gguf(path)


@dataclass(frozen=True)
class Result:
    """One type, in seconds and bytes."""

    kind: str
    matrix: bool
    seconds: float
    inner: float
    """Of the pass alone."""
    peak: int
    cp: float
    peer: float | None = None
    peer_peak: int | None = None

    def cells(self, weights: int) -> list[str]:
        cells = [
            f"{self.kind}, imatrix" if self.matrix else self.kind,
            f"{self.seconds:.2f}",
            f"{self.inner:.2f}",
            f"{weights / self.inner / 1e6:.0f}",
            f"{self.peak / 1e6:.0f}",
        ]
        if self.peer is None or self.peer_peak is None:
            cells += ["-"] * 4
        else:
            cells += [f"{self.peer:.2f}", f"{self.peer_peak / 1e6:.0f}"]
            cells += [f"{self.peer / self.seconds:.1f}", f"{self.peer / self.inner:.1f}"]
        return [*cells, f"{self.cp:.2f}", f"{self.cp / self.seconds:.0%}", f"{self.cp / self.inner:.0%}"]


HEAD = (
    "type",
    "ours, s",
    "pass, s",
    "M weights/s in the pass",
    "peak MB",
    "llama-quantize, s",
    "peak MB",
    "ratio",
    "ratio of the pass",
    "cp, s",
    "of cp's speed",
    "the pass of cp's speed",
)


def timed(command: Sequence[object]) -> child.Run:
    """`command`, while the disk has nothing to do for those before it."""
    os.sync()
    return child.run(command)


def copy_time(source: Path, size: int, target: Path) -> float:
    """Of `cp` for `size` bytes, the best of three."""
    part = target.with_name("part")
    with part.open("wb") as file:
        subprocess.run(["head", "-c", str(size), source], stdout=file, check=True)
    times = []
    for _ in range(3):
        target.unlink(missing_ok=True)
        times.append(timed(["cp", part, target]).seconds)
    part.unlink()
    target.unlink()
    return min(times)


def measure(source: Path, kind: str, matrix: Path | None, folder: Path, repeat: int, threads: int) -> Result:
    peer = os.environ.get("LLAMA_QUANTIZE")
    out, size, ours, theirs = folder / "out.gguf", 0, [], None
    options: list[object] = ["--imatrix", matrix] if matrix else []
    for turn in range(repeat):
        command = [sys.executable, "-m", "loragraft", "quantize", "--json", "-t", threads, *options]
        ours.append(timed([*command, source, out, kind]))
        size = out.stat().st_size
        out.unlink()
        if peer and turn == 0:
            theirs = timed([peer, *options, source, out, kind, threads])
            out.unlink()
    best = min(ours, key=lambda run: run.seconds)
    inner = min(json.loads(run.output[run.output.index("{") :])["seconds"] for run in ours)
    return Result(
        kind,
        matrix is not None,
        best.seconds,
        inner,
        max(run.peak for run in ours),
        copy_time(source, (source.stat().st_size + size) // 2, out),
        theirs and theirs.seconds,
        theirs and theirs.peak,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--types", default=TYPES)
    parser.add_argument("--matrix", choices=("without", "with", "both"), default="both")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--folder", type=Path, default=None, help="where model and results are made and kept")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        folder = Path(temporary)
        kept = arguments.folder or folder
        source = kept / f"bench-{arguments.layers}-layers-f16.gguf"
        results = kept / f"results-{arguments.layers}-layers-{arguments.threads}-threads.jsonl"
        weights = make_model(source, arguments.layers)
        make_imatrix(folder / "imatrix.gguf", arguments.layers)
        subprocess.run(["cat", source], stdout=subprocess.DEVNULL, check=True)
        lines = results.read_text().splitlines() if results.exists() else []
        done = [Result(**json.loads(line)) for line in lines]
        for matrix in (None, folder / "imatrix.gguf"):
            if arguments.matrix == ("with" if matrix is None else "without"):
                continue
            for kind in arguments.types.split(","):
                measured = any((r.kind, r.matrix) == (kind, matrix is not None) for r in done)
                if measured or (matrix and kind in WITHOUT_MATRIX):
                    continue
                done.append(measure(source, kind, matrix, folder, arguments.repeat, arguments.threads))
                with results.open("a") as file:
                    file.write(json.dumps(asdict(done[-1])) + "\n")
                print("  ".join(done[-1].cells(weights)), file=sys.stderr, flush=True)
    print(f"{weights / 1e6:.0f} M weights, {arguments.threads} threads, {_native.isa()}\n")
    print(f"| {' | '.join(HEAD)} |\n|---|{'--:|' * (len(HEAD) - 1)}")
    for result in done:
        print(f"| {' | '.join(result.cells(weights))} |")


if __name__ == "__main__":
    main()
