"""Speed of every quantization kernel on one core: M weights/s, and cycles per weight where the clock is given.

    python bench/quant_kernels.py [--types Q4_K,Q6_K] [--isa avx512,avx2] [--clock GHZ] [--markdown]

Random normal weights that fit the second cache, read and written in place, best of many runs: what the core computes,
without memory or disk. `plain` is quantizing without importance, `weighted` with it, `back` dequantizing.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

from loragraft.errors import LoragraftError
from loragraft.quants import native, reference
from loragraft.quants.types import by_name

ROWS, COLUMNS = 16, 8192
NEEDS_IMPORTANCE = {"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS"}


def best_rate(run: Callable[[], object], seconds: float = 0.25) -> float:
    """M weights/s of the fastest of the runs that fit `seconds`; at least three."""
    best, runs, end = float("inf"), 0, time.perf_counter() + seconds
    while runs < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
        runs += 1
    return ROWS * COLUMNS / best / 1e6


def measure(name: str, isa: str) -> tuple[float | None, float, float]:
    kind = by_name(name)
    rng = np.random.default_rng(0)
    x = (0.02 * rng.standard_normal((ROWS, COLUMNS))).astype(np.float16).astype(np.float32)
    importance = (rng.standard_normal(COLUMNS) ** 2 + 0.1).astype(np.float32)
    rows = native.quantize(x, kind, importance)
    plain = None
    if name not in NEEDS_IMPORTANCE:
        plain = best_rate(lambda: native.quantize(x, kind, isa=isa))
    weighted = best_rate(lambda: native.quantize(x, kind, importance, isa=isa))
    return plain, weighted, best_rate(lambda: native.dequantize(rows, kind, isa=isa))


def cell(rate: float | None, clock: float | None) -> str:
    if rate is None:
        return "-"
    return f"{rate:.0f}" if clock is None else f"{rate:.0f} ({1e3 * clock / rate:.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--types", help="comma-separated; all by default")
    parser.add_argument("--isa", help="comma-separated; all of this machine by default")
    parser.add_argument("--clock", type=float, help="GHz that the core runs at: adds cycles per weight")
    parser.add_argument("--markdown", action="store_true", help="print a table for the documentation")
    options = parser.parse_args()
    names = options.types.upper().split(",") if options.types else list(reference.CODECS)
    isas = options.isa.split(",") if options.isa else native.isas()
    try:
        kinds = [by_name(name) for name in names]
    except LoragraftError as error:
        parser.error(str(error))
    names = [kind.name for kind in kinds if native.supports(kind)]
    head = ("type", "isa", "plain", "weighted", "back")
    line = "| {} | {} | {} | {} | {} |" if options.markdown else "{:8} {:9} {:>16} {:>16} {:>16}"
    print(line.format(*head))
    if options.markdown:
        print("|---|---|---:|---:|---:|")
    for name in names:
        for isa in isas:
            print(
                line.format(name, isa, *(cell(rate, options.clock) for rate in measure(name, isa))),
                flush=True,
            )


if __name__ == "__main__":
    main()
