"""A GPU's speed beside the bandwidth of its memory: products of one type, and a whole model of random weights.

    python bench/gpu.py [--device webgpu:0 or cuda:0] [--type Q4_K] [--width 4096] [--layers 32] [--rows 1 4 16 512]
                         [--lora 16 [--adapters 32]]
    python bench/gpu.py --model [--type NVFP4] [--width 4096] [--layers 32] [--sequences 1 8 64] [--lora 16]

The first form chains square products, so that little but products is timed: bytes of weights a second, beside what a
copy on the device moves (read and written), and products a second; with --device cuda also those of torch's bfloat16
product of the same shape. With --lora all rows run under an adapter, or in turn under several.

The second form makes a Llama of 8 B weights' shape (narrower with --width, fewer layers with --layers), and lets every
sequence make a token at a time, with an adapter of its own with --lora: tokens a second, beside the limit that reading
the weights once a step sets. Weights are one chunk repeated: sizes alone matter.

Without a GPU, to see that it runs: TRITON_INTERPRET=1 with --device cuda --width 512 --layers 1 --times 1.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from loragraft.adapters.lora import Adapter, LoraPair
from loragraft.archs.graphs import build_graph
from loragraft.backends.batch import Piece
from loragraft.backends.program import Options, Program
from loragraft.backends.triton.device import Device as TorchDevice
from loragraft.backends.triton.device import open_device as open_torch
from loragraft.backends.triton.program import TritonProgram
from loragraft.backends.webgpu.device import Device as WebGPUDevice
from loragraft.backends.webgpu.device import open_device as open_webgpu
from loragraft.backends.webgpu.program import WebGPUProgram
from loragraft.formats.gguf.values import Value
from loragraft.formats.source import TensorSource
from loragraft.graph.build import GraphBuilder
from loragraft.graph.ops import Graph, Op, TensorFact
from loragraft.quants import native
from loragraft.quants.types import QuantType, by_name

WIDTH, HEAD_DIM, VOCABULARY = 4096, 128, 128256


class Repeated(TensorSource):
    """A weight whose rows are those of one random chunk, again and again."""

    def __init__(self, name: str, shape: tuple[int, ...], kind: QuantType) -> None:
        self.name, self.shape, self.type = name, shape, kind
        values = np.random.default_rng(0).normal(0, shape[-1] ** -0.5, (64, shape[-1])).astype(np.float32)
        self._chunk = native.quantize(values, kind, np.ones(shape[-1], np.float32))

    def rows(self, start: int, stop: int) -> npt.NDArray[np.uint8]:
        return self._chunk[np.arange(start, stop) % len(self._chunk)]


Device = WebGPUDevice | TorchDevice


def opened(name: str) -> Device:
    kind, _, number = name.partition(":")
    index = int(number) if number else None
    return open_webgpu(index) if kind == "webgpu" else open_torch(kind, index)


def program_of(device: Device, graph: Graph, weights: dict[str, TensorSource]) -> Program:
    if isinstance(device, TorchDevice):
        return TritonProgram(device, graph, weights, Options())
    return WebGPUProgram(device, graph, weights, Options())


TIMES = 5


def best_of(call: Callable[[], object]) -> float:
    call()
    taken = []
    for _ in range(TIMES):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return min(taken)


def copy_bandwidth(device: Device) -> float:
    """Bytes a second, read and written, of copies on the device."""
    if isinstance(device, TorchDevice):
        source, target = (device.empty(256 << 20, kind="uint8") for _ in range(2))

        def copied() -> None:
            for _ in range(8):
                target.copy_(source)
            target[0].item()  # waits

        return 2 * 8 * (256 << 20) / best_of(copied)
    size, times = min(device.binding_bytes, 256 << 20), 8
    one, other = device.buffer(size, "copies"), device.buffer(size, "copies")

    def copy() -> None:
        encoder = device.gpu.create_command_encoder()
        for _ in range(times):
            encoder.copy_buffer_to_buffer(one, 0, other, 0, size)
        device.queue.submit([encoder.finish()])
        device.queue.read_buffer(other, 0, 256)

    return 2 * size * times / best_of(copy)


def chain(width: int, layers: int, kind: QuantType) -> tuple[Graph, dict[str, TensorSource]]:
    weights = {f"w{i}.weight": Repeated(f"w{i}.weight", (width, width), kind) for i in range(layers)}
    g = GraphBuilder("bench", {name: TensorFact(w.shape, kind.name) for name, w in weights.items()})
    x = g.add(Op.HIDDEN, label="x", width=width)
    for i in range(layers):
        x = g.linear(x, f"w{i}")
    return g.finish(x), dict(weights)


def bf16_flops(device: TorchDevice, width: int, layers: int, rows: int) -> float:
    """Of torch's product of bfloat16 numbers, `layers` of them one after the other."""
    torch = device.torch
    weights = [torch.randn(width, width, dtype=torch.bfloat16, device=device.place) for _ in range(layers)]
    x = torch.randn(rows, width, dtype=torch.bfloat16, device=device.place)

    def run() -> None:
        y = x
        for weight in weights:
            y = torch.nn.functional.linear(y, weight)
        y[0, 0].item()  # waits

    with torch.inference_mode():
        return 2 * layers * width * width * rows / best_of(run)


def products(
    device: Device, kind: QuantType, width: int, layers: int, rows: list[int], rank: int, adapters: int
) -> None:
    program = program_of(device, *chain(width, layers, kind))
    one = adapter({f"w{i}.weight": (width, width) for i in range(layers)}, rank)
    sets = [((program.add_adapter(one), 1.0),) for _ in range(adapters)] if rank else [()]
    copied, held = copy_bandwidth(device), layers * width * kind.row_bytes(width)
    print(
        f"{device.name}: copies move {copied / 1e9:.1f} GB/s; {layers} products of {width} x {width} in {kind}"
        + (f", {adapters} adapters of rank {rank}" if rank else "")
    )
    beside = "   torch bf16" if isinstance(device, TorchDevice) else ""
    print(f"rows   GB/s of weights   of the copies' rate   GFLOP/s{beside}")
    for count in rows:
        x = np.random.default_rng(1).normal(0, 1, (count, width)).astype(np.float32)
        ids = np.zeros(count, np.int32)

        parts = [part for part in np.array_split(ids, len(sets)) if len(part)]

        def run(x: npt.NDArray[np.float32] = x, parts: list[npt.NDArray[np.int32]] = parts) -> None:
            pieces = [
                Piece(program.open_sequence(), part, chosen, wants="last")
                for part, chosen in zip(parts, sets, strict=False)
            ]
            program.run(pieces, x)
            for piece in pieces:
                program.close_sequence(piece.sequence)

        taken = best_of(run)
        flops = 2 * layers * width * width * count / taken
        row = f"{count:>4} {held / taken / 1e9:>17.2f} {held / taken / copied:>20.1%} {flops / 1e9:>10.1f}"
        if isinstance(device, TorchDevice):
            row += f" {bf16_flops(device, width, layers, count) / 1e9:>12.1f}"
        print(row)


@dataclass(frozen=True)
class Shape:
    """Llama 3's of 8 B weights, or as wide as `width`."""

    width: int

    @property
    def heads(self) -> int:
        return self.width // HEAD_DIM

    @property
    def kv_heads(self) -> int:
        return max(1, self.heads // 4)

    @property
    def ff(self) -> int:
        return self.width * 7 // 2

    @property
    def vocabulary(self) -> int:
        return VOCABULARY * self.width // WIDTH

    def linears(self) -> dict[str, tuple[int, int]]:
        width, kv, ff = self.width, self.kv_heads * HEAD_DIM, self.ff
        attention = {
            "attn_q": (width, width),
            "attn_k": (kv, width),
            "attn_v": (kv, width),
            "attn_output": (width, width),
        }
        return attention | {"ffn_gate": (ff, width), "ffn_up": (ff, width), "ffn_down": (width, ff)}


def llama(shape: Shape, layers: int, kind: QuantType) -> tuple[Graph, dict[str, TensorSource]]:
    keys = {
        "block_count": Value.u32(layers),
        "context_length": Value.u32(8192),
        "embedding_length": Value.u32(shape.width),
        "feed_forward_length": Value.u32(shape.ff),
        "attention.head_count": Value.u32(shape.heads),
        "attention.head_count_kv": Value.u32(shape.kv_heads),
        "attention.layer_norm_rms_epsilon": Value.f32(1e-5),
        "rope.freq_base": Value.f32(500000.0),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd": (shape.vocabulary, shape.width),
        "output_norm": (shape.width,),
    }
    for i in range(layers):
        shapes |= {f"blk.{i}.{name}": own for name, own in shape.linears().items()}
        shapes |= {f"blk.{i}.attn_norm": (shape.width,), f"blk.{i}.ffn_norm": (shape.width,)}
    weights: dict[str, TensorSource] = {
        f"{name}.weight": Repeated(f"{name}.weight", own, kind if len(own) > 1 else by_name("F32"))
        for name, own in shapes.items()
    }
    metadata = {"general.architecture": Value.string("llama")} | {f"llama.{k}": v for k, v in keys.items()}
    return build_graph(metadata, {n: TensorFact(w.shape, w.type.name) for n, w in weights.items()}), weights


def adapter(shapes: dict[str, tuple[int, int]], rank: int) -> Adapter:
    rng = np.random.default_rng(2)
    pairs = {}
    for target, (out, columns) in shapes.items():
        a = rng.normal(0, 0.01, (rank, columns)).astype(np.float32)
        b = rng.normal(0, 0.01, (out, rank)).astype(np.float32)
        pairs[target] = LoraPair(target, a, b, 1.0, None)
    return Adapter(Path("random"), pairs, n_tensors=2 * len(pairs))


def tokens(
    device: Device, kind: QuantType, shape: Shape, layers: int, sequences: list[int], rank: int
) -> None:
    graph, weights = llama(shape, layers, kind)
    program = program_of(device, graph, weights)
    read = sum(w.n_rows * w.row_bytes for w in weights.values())
    copied = copy_bandwidth(device)
    adapted = {f"blk.{i}.{name}.weight": own for i in range(layers) for name, own in shape.linears().items()}
    print(f"{device.name}: {layers} layers of a Llama {shape.width} wide in {kind}, {read / 1e9:.2f} GB")
    print("sequences   tokens/s   limit by bandwidth")
    for count in sequences:
        slots = [program.add_adapter(adapter(adapted, rank)) for _ in range(count)] if rank else []
        open_ = [program.open_sequence() for _ in range(count)]
        sets = [((slots[i], 1.0),) if rank else () for i in range(count)]
        token = np.ones(1, np.int32)

        def step(
            open_: list[int] = open_, sets: list[tuple] = sets, token: npt.NDArray[np.int32] = token
        ) -> None:  # type: ignore[type-arg]
            program.run([Piece(s, token, chosen) for s, chosen in zip(open_, sets, strict=True)])

        taken = best_of(step)
        print(f"{count:>9} {count / taken:>10.1f} {count * copied / read:>20.1f}")
        for sequence in open_:
            program.close_sequence(sequence)
        for slot in slots:
            program.drop_adapter(slot)


def main() -> None:
    global TIMES
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="webgpu", help="webgpu, cuda or xpu, with a number as in cuda:1")
    parser.add_argument("--type", default="Q4_K", help="of the weights")
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16, 512])
    parser.add_argument("--model", action="store_true")
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--lora", type=int, default=0, metavar="RANK")
    parser.add_argument("--adapters", type=int, default=1, help="that rows run under, in turn")
    parser.add_argument("--times", type=int, default=TIMES, help="that everything is timed; the best counts")
    given = parser.parse_args()
    TIMES = given.times
    device = opened(given.device)
    if given.model:
        if given.width % 512:
            parser.error("--width must be a multiple of 512 with --model")
        shape = Shape(given.width)
        tokens(device, by_name(given.type), shape, given.layers, given.sequences, given.lora)
    else:
        kind = by_name(given.type)
        products(device, kind, given.width, given.layers, given.rows, given.lora, given.adapters)


if __name__ == "__main__":
    main()
