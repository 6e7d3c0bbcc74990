"""What there is to run on."""

from __future__ import annotations

import json
import subprocess
import sys

import loragraft as lg
from gpu import needs_gpu
from loragraft.backends.webgpu.shaders import octets


def test_the_processor_is_always_there() -> None:
    cpu = lg.devices().found[0]
    assert cpu.name == "cpu"
    assert cpu.kind.startswith("processor, ")
    assert cpu.hardware
    assert cpu.memory is not None
    assert cpu.memory > 1 << 28
    assert {"F16", "Q4_K", "NVFP4", "IQ2_XXS"} <= set(cpu.types)


@needs_gpu
def test_gpus_are_listed() -> None:
    gpu = lg.devices().found[1]
    assert gpu.name == "webgpu:0"
    assert "GPU" in gpu.kind
    assert gpu.types == tuple(octets())
    assert gpu.buffer is not None
    assert gpu.buffer >= 1 << 27
    assert gpu.memory is None or gpu.memory >= 1 << 28


def test_without_the_package_it_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules |= dict.fromkeys(['wgpu', 'torch']); sys.argv[1:] = ['devices', '--json']\n"
        "from loragraft.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert [device["name"] for device in found["found"]] == ["cpu"]
    assert found["missing"] == [
        "webgpu: needs the package wgpu; pip install 'loragraft[gpu]'",
        "cuda: needs the package torch; pip install 'loragraft[cuda]'",
    ]
