"""The GPU, where there is one for WebGPU: Mesa's lavapipe will do, which is Vulkan on the CPU."""

from __future__ import annotations

from functools import cache

import pytest

from loragraft.backends.program import Backend
from loragraft.backends.webgpu.device import open_device
from loragraft.backends.webgpu.program import WebGPUBackend
from loragraft.errors import LoragraftError
from tolerances import WEBGPU


@cache
def missing() -> str | None:
    """Why there is none; None if there is."""
    try:
        open_device()
    except LoragraftError as reason:
        return str(reason)
    return None


#: Of every test whose subject it is.
needs_gpu = pytest.mark.skipif(missing() is not None, reason=missing() or "")
#: One more of the backends, with its tolerance: nothing where there is no GPU (tests/backends/webgpu says why).
GPU: list[tuple[Backend, float]] = [] if missing() else [(WebGPUBackend(), WEBGPU)]
#: As a test's parameters, which skip then.
WITH_GPU = pytest.param(WebGPUBackend(), WEBGPU, marks=needs_gpu, id="webgpu")
