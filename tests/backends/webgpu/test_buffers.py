"""The memory that adapters lie in: it grows, and what is dropped is given out again. Weights stream into theirs."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest

from gpu import needs_gpu
from loragraft.backends.webgpu.buffers import FloatMemory
from loragraft.backends.webgpu.device import Device, open_device
from loragraft.errors import UnsupportedError

pytestmark = needs_gpu


def held(memory: FloatMemory, offset: int, count: int) -> np.ndarray:
    device = open_device()
    return np.frombuffer(device.queue.read_buffer(memory.buffer, offset * 4, count * 4), np.float32)


def test_what_is_held_stays_where_it_is() -> None:
    rng = np.random.default_rng(0)
    memory = FloatMemory(open_device())
    live: dict[int, np.ndarray] = {}
    for _ in range(200):
        if live and rng.random() < 0.45:
            offset = int(rng.choice(list(live)))
            memory.drop(offset)
            del live[offset]
        else:
            values = rng.normal(size=int(rng.integers(1, 4000))).astype(np.float32)
            live[memory.add(values)] = values
    for offset, values in live.items():
        np.testing.assert_array_equal(held(memory, offset, len(values)), values)
    ranges = sorted((offset, offset + len(values)) for offset, values in live.items())
    assert all(end <= start for (_, end), (start, _) in pairwise(ranges))
    assert memory.buffer.size <= 8 * sum(values.nbytes for values in live.values())
    for offset in live:
        memory.drop(offset)
    assert memory.add(np.zeros(memory.buffer.size // 4, np.float32)) == 0


def test_what_does_not_fit_is_refused_and_the_rest_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = FloatMemory(open_device())
    values = np.arange(100, dtype=np.float32)
    offset = memory.add(values)
    monkeypatch.setattr(Device, "binding_bytes", 1 << 17)
    with pytest.raises(UnsupportedError, match=r"the adapters, all together, does not fit|the adapters"):
        memory.add(np.zeros(1 << 15, np.float32))
    np.testing.assert_array_equal(held(memory, offset, 100), values)
    memory.add(np.zeros(1 << 14, np.float32))


#: On a GPU emulated on the processor its memory counts as well: 200 MB of weights, and what waits to be written.
_UPLOAD = """
import resource
import numpy as np
from loragraft.backends.webgpu.buffers import DeviceWeights
from loragraft.backends.webgpu.device import open_device
from loragraft.formats.source import TensorSource
from loragraft.quants.types import F16

class Ones(TensorSource):
    def __init__(self, name):
        self.name, self.shape, self.type = name, (5000, 4000), F16
    def rows(self, start, stop):
        return np.ones((stop - start, 8000), np.uint8)

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

device = open_device()
weights = DeviceWeights(device, {str(i): Ones(str(i)) for i in range(5)})
before = peak()
for i in range(5):
    weights.matrix(str(i))
device.queue.read_buffer(device.buffer(256, "end"), 0, 4)
print(peak() - before)
"""


def test_no_second_copy_of_the_weights_waits_in_main_memory() -> None:
    done = subprocess.run([sys.executable, "-c", _UPLOAD], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 375e6  # of 400e6 with all of them waiting
