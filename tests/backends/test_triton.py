"""What GPUs by torch and Triton do not do is refused in one line; how exact their products are."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from gpu import needs_triton
from loragraft.backends.batch import Piece
from loragraft.backends.program import Options
from loragraft.backends.triton import program as programs
from loragraft.backends.triton.device import Device, open_device
from loragraft.backends.triton.program import TritonBackend, TritonProgram
from loragraft.errors import LoragraftError, PoolError, UnsupportedError
from loragraft.graph.build import GraphBuilder
from loragraft.graph.ops import TensorFact
from loragraft.inference.devices import backend_named
from running import all_logits
from small_models import small_model
from tolerances import nmse

IDS = np.array([3, 17, 39, 0, 17, 5], np.int32)
F32 = Options(activations="f32")
_SAID = (
    "from loragraft.backends.triton.device import open_device\n"
    "try: open_device('cuda')\nexcept Exception as error: print(error)"
)


def small_program(options: Options = F32, model: str = "llama") -> TritonProgram:
    small = small_model(model, np.random.default_rng(2), layers=2)
    return TritonProgram(open_device("cuda"), small.graph(), small.arrays, options)


@pytest.mark.parametrize("package", ["torch", "triton"])
def test_without_the_packages(package: str) -> None:
    modules = f"import sys; sys.modules.setdefault('torch', sys); sys.modules[{package!r}] = None\n"
    said = subprocess.run([sys.executable, "-c", modules + _SAID], capture_output=True, text=True, check=True)
    assert said.stdout == f"cuda: needs the package {package}; pip install 'loragraft[cuda]'\n"


@needs_triton
def test_without_a_gpu() -> None:
    """Where the tests run in the interpreter; where there is a GPU, there is nothing to say."""
    if not open_device("cuda").interpreted:
        pytest.skip("there is a GPU")
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    said = subprocess.run(
        [sys.executable, "-c", _SAID], capture_output=True, text=True, check=True, env=environment
    ).stdout
    assert said.startswith("cuda: torch finds no GPU that it can use: found torch 2.")
    assert said.endswith("; use --device cpu, or --device webgpu; loragraft devices lists what there is\n")


@needs_triton
def test_names_of_gpus() -> None:
    assert backend_named("native", "cuda").name == backend_named("native", "cuda:0").name == "triton"
    with pytest.raises(UnsupportedError, match="cuda:99: there is no such GPU: expected 0 to"):
        backend_named("native", "cuda:99")


@needs_triton
def test_weights_that_do_not_fit_are_refused_before_one_is_uploaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Device, "free_bytes", lambda self: 20_000)

    def empty(self: Device, *shape: int, kind: str = "float32") -> object:
        raise AssertionError("taken")

    monkeypatch.setattr(Device, "empty", empty)
    with pytest.raises(
        UnsupportedError,
        match=r"the weights: do not fit the memory of .*: found 8\d\.\d kB, expected up to 20.0 kB",
    ):
        small_program()


@needs_triton
def test_keys_and_values_beyond_the_pool_are_refused_and_the_sequence_stays() -> None:
    page = small_program().pool.page_bytes
    program = small_program(Options(activations="f32", pool_bytes=page))
    sequence = program.open_sequence()
    expected = program.run([Piece(sequence, IDS)])
    with pytest.raises(PoolError, match="keys and values: no room"):
        program.run([Piece(sequence, np.tile(IDS, 3))])
    assert program.length(sequence) == len(IDS)
    program.truncate_sequence(sequence, 0)
    np.testing.assert_array_equal(program.run([Piece(sequence, IDS)]), expected)


@needs_triton
def test_a_kernel_that_needs_more_than_the_gpu_has() -> None:
    from triton.runtime.errors import OutOfResources

    device = open_device("cuda")
    said = (
        r"has too little shared memory for a kernel: found 65536, expected 90112 or more; use --device webgpu"
    )
    with pytest.raises(UnsupportedError, match=said), device.refusing():
        raise OutOfResources(90112, 65536, "shared memory")


@needs_triton
def test_a_large_batch_goes_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    program = small_program()
    whole = all_logits(program, np.tile(IDS, 4))
    monkeypatch.setattr(programs, "_MOST_ROWS", 7)
    np.testing.assert_array_equal(all_logits(program, np.tile(IDS, 4)), whole)


@needs_triton
def test_products_of_bfloat16_numbers() -> None:
    """What runs unless `activations` is f32: both factors are off by up to 2^-8 of themselves, sums are float32."""
    rng = np.random.default_rng(4)
    x, weight = (rng.normal(0, 1, (64, 256)).astype(np.float32) for _ in range(2))
    g = GraphBuilder(
        "test", {name: TensorFact((64, 256), "F32") for name in ("token_embd.weight", "output.weight")}
    )
    graph = g.finish(g.linear(g.embed(g.tokens()), "output"))
    weights = {"token_embd.weight": x, "output.weight": weight}
    program = TritonBackend().prepare(graph, weights, Options(keys_values="f32"))
    found = all_logits(program, np.arange(64, dtype=np.int32))
    expected = x.astype(np.float64) @ weight.T
    assert 2e-6 < nmse(found, expected) < 2 * (2**-8) ** 2 / 3


@needs_triton
def test_a_child_of_a_fork_is_refused() -> None:
    program = small_program()
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
