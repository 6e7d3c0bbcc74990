"""Speed and memory of `loragraft quantize`, beside llama-quantize's where `LLAMA_QUANTIZE` names one.

    python bench/quantize.py [--types Q4_K_M,Q8_0] [--imatrix] [--repeat N] [--threads N] [--folder DIR] [--layers N]

Makes an F16 model of Llama-3.2-1B's shape with four layers (506 M weights) of random weights in DIR, and quantizes it
to each type: from the page cache, best of N, ours and theirs in turn. The times are of whole processes; `run` is ours
without the start of Python. `cp` copies a file of half the bytes that are read and written, and so moves as many.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import child
from loragraft import _native
from loragraft.formats.gguf.values import Metadata, Value
from loragraft.formats.gguf.writer import GGUFWriter, TensorSpec
from loragraft.formats.imatrix import Imatrix
from loragraft.quants.types import F16, F32

TYPES = "Q4_K_M,Q5_K_M,Q6_K,Q3_K_M,Q2_K,IQ4_XS,IQ4_NL,Q8_0,Q4_0,F16,BF16"
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


def best(runs: Sequence[child.Run]) -> child.Run:
    return min(runs, key=lambda run: run.seconds)


def copy_time(source: Path, size: int, target: Path) -> float:
    """Of `cp` for `size` bytes."""
    part = target.with_name("part")
    subprocess.run(["head", "-c", str(size), source], stdout=part.open("wb"), check=True)
    times = []
    for _ in range(3):
        target.unlink(missing_ok=True)
        times.append(child.run(["cp", part, target]).seconds)
    part.unlink()
    target.unlink()
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--types", default=TYPES)
    parser.add_argument("--imatrix", action="store_true", help="with an importance matrix of random numbers")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--folder", type=Path, default=None, help="where the model is made and kept")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        folder = Path(temporary)
        source = (arguments.folder or folder) / f"bench-{arguments.layers}-layers-f16.gguf"
        weights = make_model(source, arguments.layers)
        matrix: list[object] = []
        if arguments.imatrix:
            make_imatrix(folder / "imatrix.gguf", arguments.layers)
            matrix = ["--imatrix", folder / "imatrix.gguf"]
        subprocess.run(["cat", source], stdout=subprocess.DEVNULL, check=True)
        peer = os.environ.get("LLAMA_QUANTIZE")
        print(f"{weights / 1e6:.0f} M weights, {arguments.threads} threads, {_native.isa()}", flush=True)
        print(
            "| type | M weights/s | s | run s | cp s | peak MB | llama-quantize M weights/s | s | peak MB | ratio |"
        )
        print("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|", flush=True)
        for kind in arguments.types.split(","):
            out = folder / "out.gguf"
            ours, theirs = [], []
            for _ in range(arguments.repeat):
                out.unlink(missing_ok=True)
                command = [sys.executable, "-m", "loragraft", "quantize", "--json", "-t", arguments.threads]
                ours.append(child.run([*command, *matrix, source, out, kind]))
                if peer:
                    (folder / "peer.gguf").unlink(missing_ok=True)
                    theirs.append(
                        child.run([peer, *matrix, source, folder / "peer.gguf", kind, arguments.threads])
                    )
            run, moved = best(ours), source.stat().st_size + out.stat().st_size
            out.unlink()
            inner = json.loads(run.output[run.output.index("{") :])["seconds"]
            cells = [kind, f"{weights / run.seconds / 1e6:.0f}", f"{run.seconds:.2f}", f"{inner:.2f}"]
            cells += [f"{copy_time(source, moved // 2, out):.2f}", f"{run.peak / 1e6:.0f}"]
            if theirs:
                other = best(theirs)
                speed = f"{weights / other.seconds / 1e6:.0f}"
                cells += [speed, f"{other.seconds:.2f}", f"{other.peak / 1e6:.0f}"]
                cells.append(f"{other.seconds / run.seconds:.1f}")
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
