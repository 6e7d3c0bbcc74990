"""Compiles every Triton kernel for a GPU that is not there: what its interpreter lets pass, a compiler may not.

    TRITON_INTERPRET=0 python tests/compile_triton.py cuda:90 [kernel ...] [CONSTANT=VALUE ...]

Small programs are planned and run with every launch written down in place of being made; their variants are then
compiled, down to machine code. The target is cuda and its compute capability, or hip and its architecture, as in
hip:gfx942.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from loragraft.archs.graphs import build_graph
from loragraft.backends.batch import Piece
from loragraft.backends.program import Options
from loragraft.backends.triton import program as programs
from loragraft.backends.triton.device import Device, GpuFacts
from loragraft.backends.triton.program import TritonProgram
from loragraft.backends.triton.rounding import TritonRounding
from loragraft.graph.build import GraphBuilder
from loragraft.graph.ops import Op, TensorFact
from loragraft.quants import accelerator, rounding
from loragraft.quants.feedback import prepare
from loragraft.quants.grids import GRIDS
from loragraft.quants.types import BY_NAME
from quantized import quantized
from recurrent_model import KINDS, model
from small_models import linears, random_adapter, small_model

POINTERS = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.int8: "*i8",
    torch.uint8: "*u8",
}
_SHARED = {"cuda": 101_376, "hip": 65_536}
"""Bytes that every card has."""
SMALL = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "IQ4_NL", "MXFP4", "NVFP4")
WIDE = ("Q4_K", "Q5_K", "Q6_K", "IQ4_XS")
Variant = tuple[Any, tuple[tuple[str, str], ...], tuple[tuple[str, Any], ...], dict[str, int]]
"""A kernel, the types of its arguments, those that are constants, and options of the compiler."""

variants: dict[Any, Variant] = {}


def launched(kernel: Any, *args: Any, grid: Any, warmup: bool, **named: Any) -> None:
    """Takes the place of `JITFunction.run`: as that does, it makes constants of ones."""
    given = dict(zip((parameter.name for parameter in kernel.params), args, strict=False)) | named
    types, constants = {}, {}
    for parameter in kernel.params:
        name, value = parameter.name, given[parameter.name]
        if parameter.is_constexpr or (isinstance(value, int) and value == 1):
            types[name], constants[name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            types[name] = POINTERS[value.dtype]
        else:
            types[name] = "fp32" if isinstance(value, float) else "i32"
    kinds = tuple((name, value) for name, value in constants.items() if isinstance(value, bool | str))
    options = {name: named[name] for name in ("num_warps", "num_stages") if name in named}
    variant = kernel, tuple(types.items()), tuple(constants.items()), options
    variants.setdefault((kernel.__name__, kinds), variant)


def device_without_a_gpu() -> Device:
    """Its tensors lie on the processor, and are zeros; launches are as on a GPU."""
    device = Device(GpuFacts("cuda", 0, "no GPU", None))
    device.interpreted = False
    Device.empty = lambda self, *shape, kind="float32": torch.zeros(shape, dtype=getattr(torch, kind))  # type: ignore[method-assign]
    Device.free_bytes = lambda self: None  # type: ignore[method-assign]
    Device.shared_bytes = None  # type: ignore[assignment]
    Device._current = lambda self: nullcontext()  # type: ignore[method-assign]
    programs.recorder_of = lambda device: None
    return device


def run(program: TritonProgram, chosen: tuple[tuple[int, float], ...] = ()) -> None:
    sequence = program.open_sequence()
    for count in (20, 1):
        program.run([Piece(sequence, np.arange(count, dtype=np.int32), chosen)])


def facts_of(weights: Mapping[str, Any]) -> dict[str, TensorFact]:
    return {
        name: TensorFact(w.shape, "F32" if isinstance(w, np.ndarray) else w.type.name)
        for name, w in weights.items()
    }


def launch_models(device: Device, options: Options) -> None:
    rng = np.random.default_rng(0)
    for name in ("llama", "qwen3moe"):
        every = linears(name, layer=0)
        inner = {base: shape for base, shape in every.items() if base.startswith("blk.")}
        small = small_model(name, rng, layers=1, biased=tuple(inner), scaled=tuple(every))
        for kind in SMALL if name == "llama" else ("F32", "NVFP4"):
            weights = quantized(small.arrays, kind)
            graph = build_graph(small.metadata, facts_of(weights))
            program = TritonProgram(device, graph, weights, options)
            run(program)
            slot = program.add_adapter(random_adapter(rng, inner, rank=3, dora=name == "llama"))
            run(program, ((slot, 1.0),))
    for kind in KINDS:
        run(TritonProgram(device, *model(kind), options))
    for kind in WIDE:
        names = ("token_embd.weight", "output.weight")
        weights = quantized({name: rng.normal(0, 1, (64, 256)).astype(np.float32) for name in names}, kind)
        g = GraphBuilder("chain", facts_of(weights))
        run(TritonProgram(device, g.finish(g.linear(g.embed(g.tokens()), "output")), weights, options))


def launch_sizes(device: Device, options: Options) -> None:
    """What makes values as large as others, and cuts them (Gemma 3n)."""
    rng = np.random.default_rng(0)
    weights = {"token_embd.weight": rng.normal(0, 1, (64, 256)).astype(np.float32)}
    g = GraphBuilder("sizes", facts_of(weights))
    x = g.embed(g.tokens())
    top = g.add(Op.GAUSSIAN_TOP_K, (x,), label="top", deviations=0.5)
    matched = g.add(Op.MATCH_RMS, (g.heads(top, 4, "parts"), x), label="matched", least=1e-5)
    run(TritonProgram(device, g.finish(g.flat(matched, "flat")), weights, options))


def launch_rounding(device: Device) -> None:
    rng = np.random.default_rng(0)
    x, w = (rng.normal(0, 1, (rows, 256)).astype(np.float32) for rows in (600, 20))
    for name, grid in GRIDS.items():
        parts = grid.split(rounding.nearest(w, BY_NAME[name], np.ones(256, np.float32)))
        moments = prepare(x.T @ x, grid.sub)
        with accelerator.using(TritonRounding(device)):
            rounding.feedback(w, grid, parts, moments)


def main() -> None:
    kind, _, number = sys.argv[1].partition(":")
    target = GPUTarget(kind, int(number), 32) if kind == "cuda" else GPUTarget(kind, number, 64)
    JITFunction.run = launched
    device = device_without_a_gpu()
    launch_rounding(device)
    for options in (Options(), Options(activations="f32")):
        launch_models(device, options)
        launch_sizes(device, options)
    wanted = {word for word in sys.argv[2:] if word.islower()}
    kinds_wanted = set(sys.argv[2:]) - wanted
    failed = 0
    for (name, kinds), (kernel, types, constants, options) in variants.items():
        said = " ".join(f"{key}={value}" for key, value in kinds)
        if (wanted and name not in wanted) or not all(kind in said for kind in kinds_wanted):
            continue
        start = time.perf_counter()
        try:
            made = triton.compile(
                ASTSource(kernel, dict(types), dict(constants)), target=target, options=options
            )
            shared = f"{made.metadata.shared} bytes shared"
            if made.metadata.shared > _SHARED[kind]:
                failed += 1
                shared += f", FAILED: more than {_SHARED[kind]}"
        except Exception as error:  # of whatever kind: the next is tried
            failed += 1
            shared = f"FAILED: {str(error).strip().splitlines()[-1]}"
        print(f"{name} {said}: {shared}, {time.perf_counter() - start:.1f} s", flush=True)
    print(f"{len(variants)} variants, {failed} failed")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
