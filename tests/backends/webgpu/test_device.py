"""What a GPU does not do is refused in one line, and so is a GPU that is gone."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from gpu import needs_gpu
from loragraft.backends.batch import Piece
from loragraft.backends.program import Options
from loragraft.backends.webgpu import device as devices
from loragraft.backends.webgpu import program as programs
from loragraft.backends.webgpu import steps
from loragraft.backends.webgpu.device import Device, open_device
from loragraft.backends.webgpu.program import WebGPUBackend, WebGPUProgram
from loragraft.errors import LoragraftError, PoolError, UnsupportedError
from loragraft.graph.ops import Op
from loragraft.inference.devices import backend_named
from running import EXACT, all_logits
from small_models import small_model

IDS = np.array([3, 17, 39, 0, 17, 5], np.int32)


def small_program(device: Device | None = None, options: Options = EXACT) -> WebGPUProgram:
    small = small_model("llama", np.random.default_rng(2), layers=2)
    return WebGPUProgram(device or open_device(), small.graph(), small.arrays, options)


def test_without_the_package() -> None:
    code = (
        "import sys; sys.modules['wgpu'] = None\n"
        "from loragraft.backends.webgpu.device import open_device\n"
        "try: open_device()\nexcept Exception as error: print(error)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == "webgpu: needs the package wgpu; pip install 'loragraft[gpu]'\n"


@needs_gpu
def test_names_of_gpus() -> None:
    assert backend_named("native", "webgpu").name == backend_named("native", "webgpu:0").name == "webgpu"


def test_wrong_names() -> None:
    for wrong in ("gpu", "webgpu:", "webgpu:x", "webgpu:-1", "cuda:x", "rocm", ""):
        with pytest.raises(LoragraftError, match="device: no such device"):
            backend_named("native", wrong)
    with pytest.raises(LoragraftError, match="runs on the CPU alone: found reference with device webgpu"):
        backend_named("reference", "webgpu")


@needs_gpu
def test_there_is_no_such_gpu() -> None:
    with pytest.raises(UnsupportedError, match="webgpu:99: there is no such GPU: expected 0 to"):
        open_device(99)


@needs_gpu
def test_weights_that_do_not_fit_are_refused_before_one_is_uploaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "memory_bytes", lambda device: 20_000)

    def write(self: Device, *arguments: object) -> None:
        raise AssertionError("uploaded")

    monkeypatch.setattr(Device, "write", write)
    with pytest.raises(
        UnsupportedError,
        match=r"the weights: do not fit the memory of .*: found 8\d\.\d kB, expected up to 20.0 kB",
    ):
        small_program()


@needs_gpu
def test_weights_larger_than_a_binding_lie_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    for model in ("llama", "qwen3moe"):
        small = small_model(model, np.random.default_rng(2), layers=2)
        expected = all_logits(WebGPUBackend().prepare(small.graph(), small.arrays, EXACT), IDS)
        with monkeypatch.context() as patch:
            patch.setattr("loragraft.backends.webgpu.buffers._part_bytes", lambda device: 2048)
            program = WebGPUBackend().prepare(small.graph(), small.arrays, EXACT)
        np.testing.assert_array_equal(all_logits(program, IDS), expected)


@needs_gpu
def test_a_batch_larger_than_the_arena_goes_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    program = small_program()
    whole = all_logits(program, np.tile(IDS, 10))
    monkeypatch.setattr(programs, "_MOST_ROWS", 7)
    np.testing.assert_array_equal(all_logits(program, np.tile(IDS, 10)), whole)


@needs_gpu
def test_a_child_of_a_fork_is_refused() -> None:
    program = small_program()
    expected = all_logits(program, IDS)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            all_logits(program, IDS)
        except LoragraftError as refused:
            os.write(writer, str(refused).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        assert "was opened by another process; load the model after the fork" in pipe.read()
    assert os.waitpid(child, 0) == (child, 0)
    np.testing.assert_array_equal(all_logits(program, IDS), expected)


@needs_gpu
def test_a_lost_gpu_is_an_error() -> None:
    device = Device(devices._adapters()[0], 0)
    program = small_program(device)
    sequence = program.open_sequence()
    program.run([Piece(sequence, IDS)])
    device.gpu.destroy()
    with pytest.raises(LoragraftError, match=r"the GPU was lost: found .*; load the model again"):
        program.run([Piece(sequence, IDS)])
    assert program.length(sequence) == len(IDS)
    assert device.lost


@needs_gpu
def test_a_lost_gpu_is_opened_again() -> None:
    before = open_device()
    expected = all_logits(small_program(before), IDS)
    before.lost = True
    assert open_device() is not before
    np.testing.assert_array_equal(all_logits(small_program(), IDS), expected)


@needs_gpu
def test_no_room_for_keys_and_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """The request fails as it does where the pool has a bound; what ran before goes on."""
    program = small_program()
    sequence, other = program.open_sequence(), program.open_sequence()
    program.run([Piece(sequence, IDS)])

    def create_buffer(**settings: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(program._device.gpu, "create_buffer", create_buffer)
        with pytest.raises(PoolError, match="is out of memory"):
            program.run([Piece(other, np.tile(IDS, 100))])
    assert (program.length(sequence), program.length(other)) == (len(IDS), 0)
    found = program.run([Piece(sequence, IDS, wants="all")])
    np.testing.assert_array_equal(found, all_logits(small_program(), np.tile(IDS, 2))[len(IDS) :])


@needs_gpu
def test_what_has_no_kernel_is_refused_before_anything_is_uploaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "_KNOWN", steps._KNOWN - {Op.ROPE})
    monkeypatch.setattr(Device, "write", lambda *arguments: pytest.fail("uploaded"))
    with pytest.raises(UnsupportedError, match="no kernel for rope on WebGPU; use --device cpu"):
        small_program()


@needs_gpu
def test_pages_are_given_back() -> None:
    """A pool of four pages a layer: three sequences of one page each, forked, written, closed, again and again."""
    page = 2 * 16 * 2 * 16 * 4
    program = small_program(options=Options(pool_bytes=4 * page, keys_values="f32"))
    expected = all_logits(program, np.tile(IDS, 3))
    for _ in range(5):
        first = program.open_sequence()
        program.run([Piece(first, np.tile(IDS, 3)[:10])])
        second = program.fork_sequence(first, 7)
        found = program.run([Piece(second, np.tile(IDS, 3)[7:], wants="all")])
        np.testing.assert_array_equal(found, expected[7:])
        with pytest.raises(PoolError, match=r"no room: found .* kB, expected up to 16\.4 kB"):
            program.run([Piece(first, np.tile(IDS, 20))])
        found = program.run([Piece(first, np.tile(IDS, 3)[10:], wants="all")])
        np.testing.assert_array_equal(found, expected[10:])
        program.close_sequence(first)
        program.close_sequence(second)
