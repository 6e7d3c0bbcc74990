"""Adapters (GPUs, as WebGPU calls them) and an open device: its limits, its buffers, its kernels, what it refuses."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from loragraft.backends.gpu.process import check_process
from loragraft.backends.webgpu.shaders import Shader
from loragraft.errors import LoragraftError, UnsupportedError
from loragraft.units import bytes_text

INSTALL = "pip install 'loragraft[gpu]'"
_LIMITS = (
    "max-storage-buffer-binding-size",
    "max-buffer-size",
    "max-compute-workgroups-per-dimension",
)
PARAMETERS = 256
"""Bytes from the parameters of one dispatch to those of the next; WebGPU's default alignment of offsets."""


_MOST_WAITING = 64 << 20
"""Bytes that are written before the host waits for them: WebGPU holds a copy of each until then."""


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    """A GPU as WebGPU sees it: `kind` is "DiscreteGPU", "IntegratedGPU", "CPU", ...; `api` Vulkan, Metal or D3D12."""

    number: int
    name: str
    kind: str
    api: str
    binding_bytes: int
    """The most that a kernel sees of one buffer."""
    vendor_id: int
    device_id: int


def adapters() -> list[AdapterFacts]:
    """Every GPU that there is, in WebGPU's order. Raises UnsupportedError without the package `wgpu`."""
    return [
        AdapterFacts(
            number,
            adapter.info["device"],
            adapter.info["adapter_type"],
            adapter.info["backend_type"],
            adapter.limits["max-storage-buffer-binding-size"],
            adapter.info["vendor_id"],
            adapter.info["device_id"],
        )
        for number, adapter in enumerate(_adapters())
    ]


def open_device(number: int | None = None) -> Device:
    """The GPU `number` of `adapters()`; without one, the first that is not emulated, or else the first. It is opened
    once in a process, and a child of a fork cannot use it."""
    found = _adapters()
    if not found:
        raise UnsupportedError(
            "webgpu", "there is no GPU that Vulkan, Metal or DirectX 12 can use", hint="use --device cpu"
        )
    if number is None:
        kinds = [adapter.info["adapter_type"] for adapter in found]
        number = next((i for i in range(len(found)) if kinds[i] == "DiscreteGPU"), None)
        if number is None:
            number = next((i for i in range(len(found)) if kinds[i] != "CPU"), 0)
    if not 0 <= number < len(found):
        raise UnsupportedError(
            f"webgpu:{number}",
            "there is no such GPU",
            expected=f"0 to {len(found) - 1}",
            hint="loragraft devices lists them",
        )
    if _opened(number).lost:
        _opened.cache_clear()  # programs on it have failed; the driver may be back
    return _opened(number)


@cache
def _wgpu() -> Any:
    try:
        import wgpu
        from wgpu.backends.wgpu_native.extras import set_instance_extras
    except ModuleNotFoundError as missing:
        raise UnsupportedError("webgpu", f"needs the package {missing.name}", hint=INSTALL) from None
    # Mesa's layer that reorders devices by the display in use complains where there is none.
    os.environ.setdefault("NODEVICE_SELECT", "1")
    with suppress(RuntimeError):  # someone else in this process has made the instance already
        set_instance_extras(backends=["Vulkan", "Metal", "DX12"])  # OpenGL has too few buffers for a kernel
    return wgpu


@cache
def _adapters() -> list[Any]:
    return list(_wgpu().gpu.enumerate_adapters_sync())


@cache
def _opened(number: int) -> Device:
    return Device(_adapters()[number], number)


class Device:
    """An open GPU. Kernels are compiled once for each."""

    def __init__(self, adapter: Any, number: int) -> None:
        wgpu = _wgpu()
        self.number, self.name = number, str(adapter.info["device"])
        self._process = os.getpid()
        self.lost = False
        self._waiting = 0
        self.limits = {name: adapter.limits[name] for name in _LIMITS}
        with self.refusing():
            self.gpu = adapter.request_device_sync(required_limits=self.limits)
        self.queue = self.gpu.queue
        self._usage = wgpu.BufferUsage
        self._flags = wgpu.ShaderStage.COMPUTE
        self._pipelines: dict[tuple[str, str], Any] = {}

        def layout(*entries: dict[str, Any]) -> Any:
            return self.gpu.create_bind_group_layout(
                entries=[
                    {"binding": i, "visibility": self._flags, "buffer": entry}
                    for i, entry in enumerate(entries)
                ]
            )

        read, write = {"type": "read-only-storage"}, {"type": "storage"}
        self.values = layout(write, read, read, read)
        self.parameters = layout({"type": "uniform", "has_dynamic_offset": True})
        self.data = {"read": layout(read), "write": layout(write)}
        self._layouts = {
            kind: self.gpu.create_pipeline_layout(
                bind_group_layouts=[self.values, self.parameters, *([self.data[kind]] if kind else [])]
            )
            for kind in (None, "read", "write")
        }

    @property
    def binding_bytes(self) -> int:
        """The most bytes that a kernel sees of one buffer, a multiple of 256."""
        most = min(self.limits["max-storage-buffer-binding-size"], self.limits["max-buffer-size"])
        return int(most) // 256 * 256

    @property
    def groups(self) -> int:
        """The most workgroups along one axis."""
        return int(self.limits["max-compute-workgroups-per-dimension"])

    def pipeline(self, kernel: Shader) -> Any:
        """The kernel, ready to run."""
        key = kernel.name, kernel.source
        if key not in self._pipelines:
            with self.refusing():
                module = self.gpu.create_shader_module(code=kernel.source)
                self._pipelines[key] = self.gpu.create_compute_pipeline(
                    layout=self._layouts[kernel.data], compute={"module": module, "entry_point": "main"}
                )
        return self._pipelines[key]

    def buffer(
        self, size: int, what: str, *, uniform: bool = False, full: type[LoragraftError] = LoragraftError
    ) -> Any:
        """A buffer of at least `size` bytes, all zero. Raises UnsupportedError if a kernel could not see all of it,
        `full` if the GPU has no room for it."""
        size = max(256, -(-size // 256) * 256)
        if size > self.binding_bytes:
            raise UnsupportedError(
                what,
                f"does not fit a buffer of {self.name}",
                found=bytes_text(size),
                expected=f"up to {bytes_text(self.binding_bytes)}",
                hint="use a smaller model or type, or --device cpu",
            )
        usage = self._usage.COPY_DST | self._usage.COPY_SRC
        usage |= self._usage.UNIFORM if uniform else self._usage.STORAGE
        with self.refusing(full):
            return self.gpu.create_buffer(size=size, usage=usage)

    def landing(self, size: int) -> Any:
        """A buffer that results are read from."""
        with self.refusing():
            return self.gpu.create_buffer(size=size, usage=self._usage.COPY_DST | self._usage.MAP_READ)

    def bound(self, layout: Any, *buffers: Any, size: int | None = None) -> Any:
        """A bind group; `size`: the bytes of each that are seen at once."""
        entries = [
            {"binding": i, "resource": {"buffer": own, "offset": 0, "size": size or own.size}}
            for i, own in enumerate(buffers)
        ]
        with self.refusing():
            return self.gpu.create_bind_group(layout=layout, entries=entries)

    def write(self, buffer: Any, offset: int, data: npt.NDArray[Any]) -> None:
        """Bytes of `data`, filled up to whole words, at a byte that is a multiple of 4."""
        flat = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        if missing := -len(flat) % 4:
            flat = np.concatenate([flat, np.zeros(missing, np.uint8)])
        if not len(flat):
            return
        with self.refusing():
            self.queue.write_buffer(buffer, offset, flat)
            self._waiting += len(flat)
            if self._waiting >= _MOST_WAITING:
                self.queue.read_buffer(buffer, 0, 4)  # waits until everything is written
                self._waiting = 0

    def check_process(self) -> None:
        check_process(self.name, self._process)

    @contextmanager
    def refusing(self, full: type[LoragraftError] = LoragraftError) -> Iterator[None]:
        """Turns the failures of the device into the product's own; `full`: what it is to have no memory left."""
        wgpu = _wgpu()
        try:
            yield
        except MemoryError as problem:
            raise full(
                self.name, "is out of memory", hint="use a smaller model or type, or --device cpu"
            ) from problem
        except (wgpu.GPUError, wgpu.GPUPipelineError) as problem:
            said = _first_line(problem)
            if "lost" in said:
                raise self._gone(said) from problem
            raise LoragraftError(self.name, "the GPU failed", found=said) from problem
        except (NotImplementedError, RecursionError):  # bugs: they say nothing of the GPU
            raise
        except RuntimeError as problem:
            raise self._gone(_first_line(problem)) from problem

    def _gone(self, said: str) -> LoragraftError:
        self.lost = True
        return LoragraftError(self.name, "the GPU was lost", found=said, hint="load the model again")


def _first_line(problem: BaseException) -> str:
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    return " ".join(lines)[:300]
