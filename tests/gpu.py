"""GPUs, where there are any. Mesa's lavapipe will do for WebGPU: Vulkan on the CPU. For Triton its interpreter will do,
which runs the kernels in NumPy (TRITON_INTERPRET=1)."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from loragraft.backends.program import Backend, Options, Program, Weights
from loragraft.backends.triton import device as triton
from loragraft.backends.triton.program import TritonBackend
from loragraft.backends.webgpu import device as webgpu
from loragraft.backends.webgpu.program import WebGPUBackend
from loragraft.errors import LoragraftError
from loragraft.graph.ops import Graph
from tolerances import GPU_F32


@cache
def missing(open_device: Callable[[], object] = webgpu.open_device) -> str | None:
    """Why there is none; None if there is."""
    try:
        open_device()
    except LoragraftError as reason:
        return str(reason)
    return None


def sum_each_row_alone() -> None:
    """Triton's interpreter multiplies tiles by BLAS, which sums a row in an order that depends on its place in the
    tile. The product of a GPU does not."""
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def create_dot(self: Any, a: Any, b: Any, d: Any, precision: Any, imprecise: Any) -> Any:
        rows = np.matmul(a.data[:, None, :], b.data)[:, 0]
        return TensorHandle(rows + d.data, d.dtype.scalar)

    InterpreterBuilder.create_dot = create_dot


class ExactTriton(TritonBackend):
    """Products of float32 numbers, where a test does not say."""

    def prepare(self, graph: Graph, weights: Weights, options: Options | None = None) -> Program:
        options = options or Options()
        if options.activations == "auto":
            options = replace(options, activations="f32")
        return super().prepare(graph, weights, options)


@cache
def _first_of_torch() -> object:
    # On the processor torch's vectors have another exp than what it computes the last elements of a tensor with.
    os.environ.setdefault("ATEN_CPU_CAPABILITY", "default")
    device = triton.open_device("cuda")
    if device.interpreted:
        sum_each_row_alone()
    return device


#: Of every test whose subject it is.
needs_gpu = pytest.mark.skipif(missing() is not None, reason=missing() or "")
needs_triton = pytest.mark.skipif(missing(_first_of_torch) is not None, reason=missing(_first_of_torch) or "")
#: One more of the backends each, with its tolerance: nothing where there is no GPU (tests/backends/webgpu says why).
GPU: list[tuple[Backend, float]] = [
    *([] if missing() else [(WebGPUBackend(), GPU_F32)]),
    *([] if missing(_first_of_torch) else [(ExactTriton(), GPU_F32)]),
]
#: As tests' parameters, which skip then.
WITH_GPUS = [
    pytest.param(WebGPUBackend(), GPU_F32, marks=needs_gpu, id="webgpu"),
    pytest.param(ExactTriton(), GPU_F32, marks=needs_triton, id="triton"),
]
#: The same by the names that users give them.
WITH_DEVICES = [
    pytest.param("webgpu", marks=needs_gpu, id="webgpu"),
    pytest.param("cuda", marks=needs_triton, id="triton"),
]
