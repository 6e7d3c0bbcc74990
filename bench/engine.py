"""The native engine's speed: products by type, and a whole model of the Llama-3.2-1B shape with random weights.

    python bench/engine.py [--types Q4_K,Q8_0] [--threads N] [--layers N] [--lora R] [--no-model]

Prints, for each type, what one token reads (GB/s, beside the machine's own read bandwidth) and how many
multiply-adds a second many tokens get; then tokens a second of prompt and of generation. Best of several runs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from loragraft import _native
from loragraft.adapters.lora import Adapter, LoraPair
from loragraft.archs.graphs import build_graph, tensor_facts
from loragraft.backends.base import Options
from loragraft.backends.native import NativeBackend
from loragraft.formats.gguf.values import Value
from loragraft.formats.source import TensorSource
from loragraft.graph.lora import attach
from loragraft.quants import native, reference
from loragraft.quants.types import BY_NAME, QuantType

engine = _native.engine
RNG = np.random.default_rng(1)


def best(run: Callable[[], object], seconds: float = 0.6) -> float:
    """Seconds of the fastest of as many runs as fit."""
    run()
    times = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def read_bandwidth(threads: int) -> float:
    """GB/s of summing memory that no cache holds."""
    parts = np.array_split(np.ones(1 << 26, np.int64), threads)
    with ThreadPoolExecutor(threads) as pool:
        return (1 << 29) / best(lambda: list(pool.map(np.sum, parts))) / 1e9


def random_rows(kind: QuantType, rows: int, columns: int) -> npt.NDArray[np.uint8]:
    """Rows of a type, a few really quantized and then repeated."""
    few = RNG.standard_normal((16, columns), dtype=np.float32) / 32
    quantize = native.quantize if native.supports(kind) else reference.quantize
    return np.tile(quantize(few, kind, None), ((rows + 15) // 16, 1))[:rows]


def bench_product(kind: QuantType, threads: int) -> None:
    rows, columns = 8192 * 4, 2048
    data = random_rows(kind, rows, columns)
    weight = engine.Weight(data, kind.id, columns)
    end = engine.LinearEnd(1, rows, None, None, None, 1.0)
    pool = engine.ThreadPool(threads)
    weight.pack(pool, engine.Arena())
    cells = [f"{kind.name:8}"]
    for tokens in (1, 4, 32, 256):
        x = engine.Input()
        values = RNG.standard_normal((tokens, columns), dtype=np.float32)
        x.set(values)
        y = np.empty((tokens, rows), np.float32)
        seconds = best(lambda: engine.linear(pool, weight, x, y, end, None, 0, True))  # noqa: B023
        if tokens == 1:
            cells.append(f"{data.nbytes / seconds / 1e9:7.1f} GB/s")
        cells.append(f"{rows * columns * tokens / seconds / 1e9:7.1f}")
    print(" ".join(cells), "G mul-add/s at 1, 4, 32, 256 tokens", flush=True)


class RandomTensor(TensorSource):
    def __init__(self, name: str, shape: tuple[int, ...], kind: QuantType) -> None:
        self.name, self.shape, self.type = name, shape, kind
        self._rows = random_rows(kind, self.n_rows, self.columns)

    def rows(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        return self._rows[start:stop]


def bench_model(kind: QuantType, threads: int, layers: int, rank: int) -> None:
    width, ff, vocab, heads, kv_heads = 2048, 8192, 32000, 32, 8
    keys = {
        "block_count": Value.u32(layers),
        "context_length": Value.u32(4096),
        "embedding_length": Value.u32(width),
        "feed_forward_length": Value.u32(ff),
        "attention.head_count": Value.u32(heads),
        "attention.head_count_kv": Value.u32(kv_heads),
        "attention.layer_norm_rms_epsilon": Value.f32(1e-5),
        "rope.freq_base": Value.f32(500000.0),
    }
    metadata = {"general.architecture": Value.string("llama")} | {f"llama.{k}": v for k, v in keys.items()}
    kv = width // heads * kv_heads
    linears: dict[str, tuple[int, int]] = {"output": (vocab, width), "token_embd": (vocab, width)}
    tensors: dict[str, TensorSource] = {}
    norms = ["output_norm"]
    for i in range(layers):
        norms += [f"blk.{i}.attn_norm", f"blk.{i}.ffn_norm"]
        linears |= {
            f"blk.{i}.attn_q": (width, width),
            f"blk.{i}.attn_k": (kv, width),
            f"blk.{i}.attn_v": (kv, width),
            f"blk.{i}.attn_output": (width, width),
            f"blk.{i}.ffn_gate": (ff, width),
            f"blk.{i}.ffn_up": (ff, width),
            f"blk.{i}.ffn_down": (width, ff),
        }
    for base, shape in linears.items():
        tensors[f"{base}.weight"] = RandomTensor(f"{base}.weight", shape, kind)
    for base in norms:
        tensors[f"{base}.weight"] = RandomTensor(f"{base}.weight", (width,), BY_NAME["F32"])
    graph = build_graph(metadata, tensor_facts(tensors))
    weights: dict[str, object] = dict(tensors)
    if rank:
        pairs = {}
        for base, (out, columns) in linears.items():
            if base.startswith("blk"):
                a = RNG.standard_normal((rank, columns), dtype=np.float32)
                b = RNG.standard_normal((out, rank), dtype=np.float32)
                pairs[f"{base}.weight"] = LoraPair(f"{base}.weight", a, b, 1e-3)
        graph, extra = attach(graph, [(Adapter("random", pairs, n_tensors=2 * len(pairs)), 1.0)])
        weights |= extra
    start = time.perf_counter()
    session = NativeBackend().open(graph, weights, Options(threads=threads))
    opened = time.perf_counter() - start
    prompt = RNG.integers(0, vocab, 512).astype(np.int32)

    def prefill() -> None:
        session.reset()
        session.forward(prompt, last_only=True)

    def decode() -> None:
        session.forward(prompt[:1])

    prefill_seconds = best(prefill, 1.0)
    decode_seconds = best(decode, 2.0)
    read = sum(t.row_bytes * t.n_rows for name, t in tensors.items() if name != "token_embd.weight")
    print(
        f"{kind.name}, {layers} layers, {threads} threads, LoRA r={rank}: opened in {opened:.2f} s, "
        f"prompt {512 / prefill_seconds:.1f} t/s, generation {1 / decode_seconds:.1f} t/s "
        f"({read / decode_seconds / 1e9:.1f} GB/s)",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--types", default="F16,Q8_0,Q4_0,Q4_K,Q5_K,Q6_K,NVFP4")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--lora", type=int, default=0, metavar="RANK")
    parser.add_argument("--no-model", action="store_true")
    parser.add_argument("--no-products", action="store_true")
    args = parser.parse_args()
    threads = engine.ThreadPool(args.threads).size
    print(
        f"instruction set {_native.isa()}, {threads} threads, memory reads {read_bandwidth(threads):.1f} GB/s"
    )
    kinds = [BY_NAME[name] for name in args.types.split(",")]
    for kind in kinds:
        if not args.no_products:
            bench_product(kind, threads)
    for kind in kinds:
        if not args.no_model:
            bench_model(kind, threads, args.layers, args.lora)


if __name__ == "__main__":
    main()
