"""The speed of the native engine's products by type; bench/running.py has whole models.

    python bench/engine.py [--types Q4_K,Q8_0] [--threads N]

Prints, for each type, what one token reads (GB/s, beside the machine's own read bandwidth) and how many
multiply-adds a second some tokens get. Best of several runs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from loragraft import _native
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
    pool = engine.ThreadPool(threads)
    weight.pack(pool, engine.Arena())
    cells = [f"{kind.name:8}"]
    for tokens in (1, 4, 32, 256):
        x = RNG.standard_normal((tokens, columns), dtype=np.float32)
        y = np.empty((tokens, rows), np.float32)
        seconds = best(lambda: engine.multiply(pool, weight, x, y, True))  # noqa: B023
        if tokens == 1:
            cells.append(f"{data.nbytes / seconds / 1e9:7.1f} GB/s")
        cells.append(f"{rows * columns * tokens / seconds / 1e9:7.1f}")
    print(" ".join(cells), "G mul-add/s at 1, 4, 32, 256 tokens", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--types", default="F16,Q8_0,Q4_0,Q4_K,Q5_K,Q6_K,NVFP4")
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    threads = engine.ThreadPool(args.threads).size
    print(
        f"instruction set {_native.isa()}, {threads} threads, memory reads {read_bandwidth(threads):.1f} GB/s"
    )
    kinds = [BY_NAME[name] for name in args.types.split(",")]
    for kind in kinds:
        bench_product(kind, threads)


if __name__ == "__main__":
    main()
