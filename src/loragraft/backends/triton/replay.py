"""Passes that are recorded once and replayed, as CUDA graphs: replies that make a token at a time have hundreds of
kernels to launch for each, and nothing in them changes but numbers.

What changes from pass to pass lies in tensors that stay (`Inputs`); a recording reads these. It holds for as many rows,
the same adapters and pools that have not moved.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from loragraft.backends.triton.device import Device

Inputs = Mapping[str, Any]
"""Tensors by name."""
Arrays = Mapping[str, npt.NDArray[Any]]

MOST_ROWS = 256
_KEPT = 16
_PAGES = 64


class Recorder(Protocol):
    def record(self, run: Callable[[], Any]) -> Callable[[], Any]:
        """What launches everything that `run` does, and returns the same tensor, filled anew. Whether `run` does it now
        does not matter."""


class CudaGraphs:
    """Of torch."""

    def __init__(self, device: Device) -> None:
        self._cuda = device.torch.cuda
        self._memory = self._cuda.graph_pool_handle()

    def record(self, run: Callable[[], Any]) -> Callable[[], Any]:
        graph = self._cuda.CUDAGraph()
        with self._cuda.graph(graph, pool=self._memory):
            result = run()

        def replay() -> Any:
            graph.replay()
            return result

        return replay


def recorder_of(device: Device) -> Recorder | None:
    """None where there is no such thing."""
    if device.interpreted or device.kind != "cuda" or not hasattr(device.torch.cuda, "CUDAGraph"):
        return None
    return CudaGraphs(device)


class Replays:
    """The recordings of a program, by what they hold for."""

    def __init__(self, device: Device, recorder: Recorder) -> None:
        self._device = device
        self._recorder: Recorder | None = recorder
        self._seen: dict[Hashable, tuple[Inputs, tuple[Any, ...]]] = {}
        self._recorded: dict[Hashable, Callable[[], Any]] = {}

    def run(self, key: Hashable, holds: tuple[Any, ...], arrays: Arrays, run: Callable[[Inputs], Any]) -> Any:
        """`run` of the arrays as tensors. The first time it runs, which compiles its kernels; then it is recorded.
        `key`, and which objects these are that it `holds`, say whether a recording does the same."""
        shapes = tuple((name, array.shape) for name, array in arrays.items())
        key = key, tuple(map(id, holds)), shapes
        if key not in self._seen or self._recorder is None:
            inputs: Inputs = {name: self._device.tensor(array) for name, array in arrays.items()}
            self._keep(key, inputs, holds)
            return run(inputs)
        inputs, _ = self._seen.pop(key)
        self._keep(key, inputs, holds)
        for name, array in arrays.items():
            inputs[name].copy_(self._device.of(array))
        if key not in self._recorded:
            try:
                self._recorded[key] = self._recorder.record(lambda: run(inputs))
            except RuntimeError:  # this device or driver cannot: everything runs as it does without
                self._recorder = None
                return run(inputs)
        return self._recorded[key]()

    def _keep(self, key: Hashable, inputs: Inputs, holds: tuple[Any, ...]) -> None:
        """Used last. What it holds stays as long: nothing else gets its place in memory, or its id."""
        self._seen[key] = inputs, holds
        while len(self._seen) > _KEPT:
            oldest = next(iter(self._seen))
            del self._seen[oldest]
            self._recorded.pop(oldest, None)


def padded(pages: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """Lists of pages in a size that rarely changes: a power of two."""
    more = np.zeros(max(_PAGES, 1 << (len(pages) - 1).bit_length()), np.int32)
    more[: len(pages)] = pages
    return more
