"""The error and the speed of NVFP4 quantizers: ours, ggml's, and the rules that others publish.

    python bench/nvfp4.py [CHECKPOINT ...] [--weights N]

Prints the squared error relative to the weights' squares, on Gaussian and Laplace weights and on the linears of each
checkpoint (a Hugging Face folder; default examples/llama-kjv), and the speed of one thread. The rules:

- ggml: its own quantizer, block scales by its own encoder, no per-tensor scale;
- amax: ModelOpt's, block scale = largest magnitude / 6, per-tensor scale = largest / 2688;
- four over six: of amax / 6 and amax / 4 the one of less error (Cook et al., arXiv:2512.02010);
- ours: the best of all block scales; and once with an importance matrix, its error weighted by it, beside amax's.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from loragraft.arrays import Floats
from loragraft.formats.checkpoint import Checkpoint
from loragraft.quants import e4m3, native, nvfp4
from loragraft.quants.types import by_name

Rule = Callable[[Floats, float], Floats]

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
MIDDLES = (E2M1[1:] + E2M1[:-1]) / 2


def at_scales(y: Floats, block_scales: Floats) -> Floats:
    """Magnitudes y [blocks, 16] in units of the per-tensor scale, rounded at E4M3 block scales [blocks]."""
    d = e4m3.decode(e4m3.encode(block_scales))[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(d > 0, d * E2M1[np.searchsorted(MIDDLES, y / d)], 0).astype(np.float32)


def by_block_rule(rule: Callable[[Floats], Floats]) -> Rule:
    """Quantize and read back by a rule on magnitudes in units of the per-tensor scale [blocks, 16]."""

    def apply(x: Floats, scale: float) -> Floats:
        y = (np.abs(x) / np.float32(scale)).reshape(-1, 16)
        return np.copysign(rule(y).reshape(x.shape) * np.float32(scale), x)

    return apply


def amax_rule(y: Floats) -> Floats:
    return at_scales(y, y.max(axis=1) / 6)


def four_over_six_rule(y: Floats) -> Floats:
    six, four = amax_rule(y), at_scales(y, y.max(axis=1) / 4)
    better = ((y - four) ** 2).sum(axis=1) < ((y - six) ** 2).sum(axis=1)
    return np.where(better[:, None], four, six)


def ggml(x: Floats, scale: float) -> Floats:
    return native.dequantize(native.quantize(x, nvfp4.NVFP4), nvfp4.NVFP4)


def ours(x: Floats, scale: float, importance: Floats | None = None) -> Floats:
    return nvfp4.dequantize_nvfp4(native.quantize_nvfp4(x, scale, importance), scale)


RULES: dict[str, Rule] = {
    "ggml": ggml,
    "amax": by_block_rule(amax_rule),
    "four over six": by_block_rule(four_over_six_rule),
    "ours": ours,
}


def error(x: Floats, back: Floats, w: Floats | float = 1.0) -> tuple[float, float]:
    """(weighted squared error, weighted square) of rows."""
    wide = x.astype(np.float64)
    return float((w * (wide - back) ** 2).sum()), float((w * wide**2).sum())


def linears(folder: Path) -> list[Floats]:
    """The two-dimensional weights of a checkpoint's layers whose columns NVFP4 can hold."""
    checkpoint = Checkpoint.open(folder)
    tensors = [t for name, t in checkpoint.tensors.items() if name.endswith(".weight") and ".layers." in name]
    fit = [t for t in tensors if len(t.shape) == 2 and t.shape[1] % nvfp4.BLOCK == 0]
    return [native.dequantize(t.data().reshape(t.shape[0], -1), by_name(t.dtype)) for t in fit]


def show_errors(name: str, tensors: list[Floats], rng: np.random.Generator) -> None:
    sums = dict.fromkeys((*RULES, "amax, weighted", "ours, weighted"), np.zeros(2))
    for x in tensors:
        scale = nvfp4.tensor_scale(float(np.abs(x).max()))
        importance = np.exp(rng.standard_normal(x.shape[1])).astype(np.float32)
        for rule, quantize in RULES.items():
            sums[rule] = sums[rule] + error(x, quantize(x, scale))
        sums["amax, weighted"] = sums["amax, weighted"] + error(x, RULES["amax"](x, scale), importance)
        sums["ours, weighted"] = sums["ours, weighted"] + error(x, ours(x, scale, importance), importance)
    print(f"{name:24}" + "".join(f"{wrong / all_:16.5f}" for wrong, all_ in sums.values()), flush=True)


def best_seconds(work: Callable[[], object], repeat: int = 5) -> float:
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def show_speeds(x: Floats) -> None:
    scale = nvfp4.tensor_scale(float(np.abs(x).max()))
    importance = np.ones(x.shape[1], np.float32)
    print("\nM weights/s, one thread", *(f"{isa:>12}" for isa in native.isas()))
    work: dict[str, Callable[[str], object]] = {
        "ours": lambda isa: native.quantize_nvfp4(x, scale, isa=isa),
        "ours, weighted": lambda isa: native.quantize_nvfp4(x, scale, importance, isa=isa),
        "ggml's algorithm": lambda isa: native.quantize(x, nvfp4.NVFP4, isa=isa),
    }
    for name, run in work.items():
        speeds = [x.size / best_seconds(lambda run=run, isa=isa: run(isa)) / 1e6 for isa in native.isas()]
        print(f"{name:24}", *(f"{speed:12.0f}" for speed in speeds))
    plain = x[: len(x) // 8]
    seconds = best_seconds(lambda: nvfp4.quantize_nvfp4(plain, scale), repeat=1)
    print(f"{'ours, NumPy':24} {plain.size / seconds / 1e6:12.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoints", nargs="*", type=Path, metavar="CHECKPOINT")
    parser.add_argument("--weights", type=int, default=1 << 21, help="random weights per distribution")
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    shape = (args.weights // 2048, 2048)
    gaussian = (rng.standard_normal(shape) * 0.02).astype(np.float32)

    columns = (*RULES, "amax, weighted", "ours, weighted")
    print(f"{'relative squared error':24}" + "".join(f"{name:>16}" for name in columns))
    show_errors("Gaussian, sigma 0.02", [gaussian], rng)
    show_errors("Gaussian, sigma 0.002", [gaussian / np.float32(10)], rng)
    show_errors("Laplace", [(rng.laplace(size=shape) * 0.02).astype(np.float32)], rng)
    for folder in args.checkpoints or [Path(__file__).parent.parent / "examples" / "llama-kjv"]:
        show_errors(folder.name, linears(folder), rng)
    show_speeds(gaussian)


if __name__ == "__main__":
    main()
