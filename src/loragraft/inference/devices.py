"""Where models run: backends by name, and the devices that they run on."""

from __future__ import annotations

from loragraft.backends.program import Backend
from loragraft.errors import LoragraftError, UnsupportedError
from loragraft.inference.measurement import BackendName
from loragraft.quants.accelerator import Accelerator

GPU_KINDS = ("webgpu", "cuda", "xpu")


def backend_named(name: BackendName, device: str = "cpu") -> Backend:
    """The backend called `name`, on `device`: "cpu", or a GPU by "webgpu", "cuda" or "xpu", with its number as in
    "cuda:1". A GPU has one backend, and `name` must be "native" then. Raises LoragraftError for other names,
    UnsupportedError for a device that is not there."""
    if name not in ("native", "reference"):
        raise LoragraftError("backend", "no such backend", found=name, expected="native or reference")
    kind, colon, number = device.partition(":")
    if kind in GPU_KINDS and (not colon or (number.isascii() and number.isdecimal())):
        if name != "native":
            raise LoragraftError("backend", "runs on the CPU alone", found=f"{name} with device {device}")
        return _on_gpu(kind, int(number) if colon else None)
    if device != "cpu":
        expected = "cpu, webgpu, cuda or xpu, or a GPU's number as in cuda:1"
        raise LoragraftError("device", "no such device", found=device, expected=expected)
    if name == "native":
        from loragraft.backends.cpu.program import NativeBackend

        return NativeBackend()
    from loragraft.backends.reference import ReferenceBackend

    return ReferenceBackend()


def accelerator_named(device: str) -> Accelerator | None:
    """What rounds with error feedback on `device`, named as above; None: the processor. Raises as `backend_named`, and
    UnsupportedError for WebGPU."""
    kind, colon, number = device.partition(":")
    if kind == "webgpu":
        raise UnsupportedError(device, "runs models, but does not round", expected="cpu, cuda or xpu")
    backend_named("native", device)
    if kind == "cpu":
        return None
    from loragraft.backends.triton.device import open_device
    from loragraft.backends.triton.rounding import TritonRounding

    return TritonRounding(open_device(kind, int(number) if colon else None))


def _on_gpu(kind: str, number: int | None) -> Backend:
    if kind == "webgpu":
        from loragraft.backends.webgpu.device import open_device
        from loragraft.backends.webgpu.program import WebGPUBackend

        return WebGPUBackend(open_device(number).number)
    from loragraft.backends.triton.device import open_device as open_torch
    from loragraft.backends.triton.program import TritonBackend

    open_torch(kind, number)
    return TritonBackend(kind, number)
