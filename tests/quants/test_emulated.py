"""The kernels of another instruction set, under an emulator, return the NumPy reference's bytes (`make test-neon`)."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Iterator

import numpy as np
import pytest

from any_weights import IMPORTANCE, ROWS, SPECIAL_SCALES, weights
from loragraft.quants import reference
from loragraft.quants.types import BY_NAME, QuantType

COMMAND = os.environ.get("LORAGRAFT_EMULATED", "")
pytestmark = pytest.mark.skipif(
    not COMMAND, reason="run by `make test-neon`, which builds the kernels for Arm"
)


class Kernels:
    """tests/native/quantize_rows.cpp, for one instruction set."""

    def __init__(self, isa: str) -> None:
        self._process = subprocess.Popen(
            [*shlex.split(COMMAND), isa], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def _ask(self, request: list[int], *arrays: np.ndarray, size: int) -> bytes:
        for array in (np.array(request, dtype="<i8"), *arrays):
            self._process.stdin.write(array.tobytes())
        self._process.stdin.flush()
        return self._process.stdout.read(size)

    def quantize(self, x: np.ndarray, kind: QuantType, importance: np.ndarray | None) -> np.ndarray:
        rows, columns = x.shape
        request = [kind.id, rows, columns, importance is not None, 0]
        arrays = [x] if importance is None else [x, importance]
        out = self._ask(request, *arrays, size=rows * kind.row_bytes(columns))
        return np.frombuffer(out, dtype=np.uint8).reshape(rows, -1)

    def dequantize(self, data: np.ndarray, kind: QuantType) -> np.ndarray:
        rows, columns = len(data), data.shape[1] // kind.bytes * kind.block
        out = self._ask([kind.id, rows, columns, 0, 1], data, size=4 * rows * columns)
        return np.frombuffer(out, dtype=np.float32).reshape(rows, -1)

    def close(self) -> None:
        self._process.stdin.close()
        self._process.stdout.close()
        assert self._process.wait() == 0


@pytest.fixture(scope="module", params=["neon", "baseline"])
def kernels(request: pytest.FixtureRequest) -> Iterator[Kernels]:
    process = Kernels(request.param)
    yield process
    process.close()


@pytest.mark.parametrize("name", list(reference.CODECS))
def test_emulated_kernels_are_the_reference_bit_for_bit(name: str, kernels: Kernels) -> None:
    kind = BY_NAME[name]
    columns = 3 * kind.block if kind.block > 1 else 37
    for seed, scale in enumerate(SPECIAL_SCALES):
        x = weights(seed, list(ROWS), scale, columns)
        for how, make in IMPORTANCE.items():
            w = (
                None
                if seed % 2 and how == "even"
                else make(np.random.default_rng(seed), columns).astype(np.float32)
            )
            if w is None and name.startswith("IQ"):
                continue
            wanted = reference.quantize(x, kind, w)
            np.testing.assert_array_equal(kernels.quantize(x, kind, w), wanted, err_msg=f"{scale} {how}")
        back = reference.dequantize(wanted, kind)
        np.testing.assert_array_equal(kernels.dequantize(wanted, kind), back)


@pytest.mark.parametrize("name", ["F16", "BF16"])
def test_emulated_half_formats_convert_every_pattern_alike(name: str, kernels: Kernels) -> None:
    kind = BY_NAME[name]
    data = np.arange(1 << 16, dtype="<u2").view(np.uint8).reshape(64, -1)
    back = reference.dequantize(data, kind)
    np.testing.assert_array_equal(kernels.dequantize(data, kind).view(np.uint32), back.view(np.uint32))
    upper = np.arange(1 << 16, dtype=np.uint32).reshape(64, -1) << 16
    for lower in (0, 1, 0x0FFF, 0x1000, 0x1001, 0x8000, 0xFFFF):
        x = (upper | np.uint32(lower)).view(np.float32)
        np.testing.assert_array_equal(kernels.quantize(x, kind, None), reference.quantize(x, kind))
