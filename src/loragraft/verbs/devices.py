"""What models can run on here: the processor, and every GPU that WebGPU or torch finds."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from loragraft import _native
from loragraft.backends.triton.device import gpus as triton_gpus
from loragraft.backends.webgpu.device import adapters
from loragraft.backends.webgpu.memory import memory_bytes
from loragraft.backends.webgpu.shaders import octets
from loragraft.errors import LoragraftError
from loragraft.quants.types import BY_NAME


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """`name`: what `--device` and `load(device=)` take. `hardware`: what it is. `kind`: "processor", "GPU", or "GPU
    emulated on the processor". `memory`: bytes of its own memory; None: nothing says. `buffer`: the most bytes of one
    buffer, None: no bound. `types`: of weights that it multiplies as they are stored."""

    name: str
    hardware: str
    kind: str
    memory: int | None
    buffer: int | None
    types: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Devices:
    """`found`: the devices; `missing`: why there may be more, one line each."""

    found: tuple[DeviceFacts, ...]
    missing: tuple[str, ...]


def devices() -> Devices:
    """The processor first, then GPUs by number."""
    found, missing = [_processor()], list[str]()
    for some, why in (_webgpu(), _torch("cuda"), _torch("xpu")):
        found += some
        missing += why
    return Devices(tuple(found), tuple(dict.fromkeys(missing)))


def _webgpu() -> tuple[list[DeviceFacts], list[str]]:
    found, missing = list[DeviceFacts](), list[str]()
    try:
        gpus = adapters()
        if not gpus:
            missing.append("webgpu: Vulkan, Metal or DirectX 12 finds no GPU; its driver may be missing")
    except LoragraftError as reason:
        gpus = []
        missing.append(str(reason))
    for gpu in gpus:
        kind = f"GPU emulated on the processor, {gpu.api}" if gpu.kind == "CPU" else f"GPU, {gpu.api}"
        found.append(
            DeviceFacts(
                f"webgpu:{gpu.number}", gpu.name, kind, memory_bytes(gpu), gpu.binding_bytes, tuple(octets())
            )
        )
    return found, missing


def _torch(kind: str) -> tuple[list[DeviceFacts], list[str]]:
    try:
        gpus = triton_gpus(kind)
    except LoragraftError as reason:
        return [], [str(reason)] if kind == "cuda" else []
    if not gpus:
        return [], [f"{kind}: torch finds no GPU of this kind"]
    from loragraft.backends.triton.kernels.blocks import PLANES

    how = f"GPU, {kind}" if gpus[0].memory is not None else "GPU emulated on the processor"
    return [
        DeviceFacts(f"{kind}:{gpu.number}", gpu.name, how, gpu.memory, None, tuple(PLANES)) for gpu in gpus
    ], []


def _processor() -> DeviceFacts:
    types = tuple(name for name, kind in BY_NAME.items() if _native.engine.has_type(kind.id))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return DeviceFacts("cpu", _processor_name(), f"processor, {_native.isa()}", memory, None, types)


def _processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())
