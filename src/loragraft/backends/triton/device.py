"""GPUs that torch can use, and an open one: its name, its memory, its errors in one line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from loragraft.backends.gpu.process import check_process
from loragraft.errors import LoragraftError, UnsupportedError

INSTALL = "pip install 'loragraft[cuda]'"
KINDS = ("cuda", "xpu")
"""What torch calls its devices: CUDA and ROCm are "cuda", Intel's GPUs "xpu"."""


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """A GPU as torch sees it. `memory`: bytes of its own; None where it is the processor."""

    kind: str
    number: int
    name: str
    memory: int | None


def interpreted() -> bool:
    """Whether Triton runs kernels in its interpreter, on the processor (TRITON_INTERPRET=1)."""
    return os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")


def gpus(kind: str) -> list[GpuFacts]:
    """Those of one kind. Raises UnsupportedError without the packages."""
    torch = _torch(kind)
    if interpreted():
        return [GpuFacts(kind, 0, "Triton's interpreter", None)]
    part = getattr(torch, kind, None)
    if part is None or not part.is_available():
        return []
    return [
        GpuFacts(kind, i, part.get_device_properties(i).name, int(part.get_device_properties(i).total_memory))
        for i in range(part.device_count())
    ]


def open_device(kind: str, number: int | None = None) -> Device:
    """The GPU `number` of a kind, or the first. It is opened once in a process."""
    found = gpus(kind)
    if not found:
        raise UnsupportedError(
            kind,
            "torch finds no GPU that it can use",
            found=f"torch {_torch(kind).__version__}",
            hint="use --device cpu, or --device webgpu; loragraft devices lists what there is",
        )
    if not 0 <= (number or 0) < len(found):
        raise UnsupportedError(
            f"{kind}:{number}",
            "there is no such GPU",
            expected=f"0 to {len(found) - 1}",
            hint="loragraft devices lists them",
        )
    return _opened(kind, number or 0)


@cache
def _opened(kind: str, number: int) -> Device:
    return Device(gpus(kind)[number])


@cache
def _torch(kind: str) -> Any:
    try:
        import torch
        import triton  # noqa: F401
    except ModuleNotFoundError as missing:
        raise UnsupportedError(kind, f"needs the package {missing.name}", hint=INSTALL) from None
    return torch


@cache
def _out_of_resources() -> Any:
    from triton.runtime.errors import OutOfResources

    return OutOfResources


class Device:
    """An open GPU."""

    def __init__(self, facts: GpuFacts) -> None:
        self.torch = _torch(facts.kind)
        self.name, self.kind, self.memory = facts.name, facts.kind, facts.memory
        self.interpreted = facts.memory is None
        self.place = self.torch.device("cpu" if self.interpreted else f"{facts.kind}:{facts.number}")
        self._process = os.getpid()

    def check_process(self) -> None:
        """Raises LoragraftError in a child of a fork."""
        check_process(self.kind, self._process)

    @property
    def shared_bytes(self) -> int | None:
        """Of shared memory that a program may have; None where nothing says."""
        if self.interpreted:
            return None
        facts = getattr(self.torch, self.kind).get_device_properties(self.place)
        return getattr(facts, "shared_memory_per_block_optin", None)

    def free_bytes(self) -> int | None:
        """What a program may still take; None where nothing says."""
        if self.interpreted:
            return None
        with self.refusing():
            free, _ = getattr(self.torch, self.kind).mem_get_info(self.place)
        return int(free)

    def tensor(self, values: npt.NDArray[Any]) -> Any:
        """A NumPy array on the device."""
        return self.of(values).to(self.place)

    def of(self, values: npt.NDArray[Any]) -> Any:
        """A NumPy array as a tensor on the processor: of one that cannot be written, such as a file's, a copy."""
        return self.torch.from_numpy(np.require(values, requirements=["C", "W"]))

    def empty(self, *shape: int, kind: str = "float32") -> Any:
        return self.torch.empty(shape, dtype=getattr(self.torch, kind), device=self.place)

    def _current(self) -> Any:
        """Kernels and recordings go to torch's current GPU, wherever their tensors are."""
        return nullcontext() if self.interpreted else getattr(self.torch, self.kind).device(self.place)

    @contextmanager
    def refusing(self, full: type[LoragraftError] = UnsupportedError) -> Iterator[None]:
        """Torch's errors in ours; `full` is raised where memory is short."""
        try:
            with self._current(), self.torch.inference_mode():
                yield
        except self.torch.OutOfMemoryError:
            raise full(
                self.name, "is out of memory", hint="use a smaller model or type, or --device cpu"
            ) from None
        except _out_of_resources() as short:
            raise UnsupportedError(
                self.name,
                f"has too little {short.name} for a kernel",
                found=short.limit,
                expected=f"{short.required} or more",
                hint="use --device webgpu, or --device cpu",
            ) from None
        except self.torch.AcceleratorError as failed:
            raise LoragraftError(
                self.name, "failed", found=str(failed).splitlines()[0], hint="load the model again"
            ) from None
