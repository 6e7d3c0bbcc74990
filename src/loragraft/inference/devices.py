"""Where models run: backends by name, and the devices that they run on."""

from __future__ import annotations

from loragraft.backends.program import Backend
from loragraft.errors import LoragraftError
from loragraft.inference.measurement import BackendName


def backend_named(name: BackendName, device: str = "cpu") -> Backend:
    """The backend called `name`, on `device`: "cpu", "webgpu" or "webgpu:N". A GPU has one backend, and `name` must be
    "native" then. Raises LoragraftError for other names, UnsupportedError for a device that is not there."""
    if name not in ("native", "reference"):
        raise LoragraftError("backend", "no such backend", found=name, expected="native or reference")
    kind, colon, number = device.partition(":")
    if kind == "webgpu" and (not colon or (number.isascii() and number.isdecimal())):
        if name != "native":
            raise LoragraftError("backend", "runs on the CPU alone", found=f"{name} with device {device}")
        from loragraft.backends.webgpu.device import open_device
        from loragraft.backends.webgpu.program import WebGPUBackend

        return WebGPUBackend(open_device(int(number) if colon else None).number)
    if device != "cpu":
        raise LoragraftError("device", "no such device", found=device, expected="cpu, webgpu or webgpu:N")
    if name == "native":
        from loragraft.backends.cpu.program import NativeBackend

        return NativeBackend()
    from loragraft.backends.reference import ReferenceBackend

    return ReferenceBackend()
