"""Models on a GPU, as a user loads them: the trained ones, with and without adapters, against transformers and PEFT."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import loragraft as lg
from golden_logits import FLOAT_CASES, NVFP4_CASES
from gpu import WITH_DEVICES
from loragraft.errors import LoragraftError, UnsupportedError
from loragraft.inference.devices import accelerator_named
from paths import arrays, data
from tolerances import GPU_F32, KEYS_VALUES_F16, nmse

CASES = [
    *(("hf-logits", *case) for case in FLOAT_CASES),
    ("hf-logits", "llama-kjv", "llama-kjv.dora", "llama+dora"),
    *(("hf-logits-modelopt-nvfp4", *case) for case in NVFP4_CASES),
]
IDS = 12
"""How many of the tokens are read: a GPU emulated on the CPU takes its time."""


@pytest.mark.parametrize("device", WITH_DEVICES)
@pytest.mark.parametrize(("file", "model", "adapter", "name"), CASES, ids=[case[-1] for case in CASES])
def test_trained_models(file: str, model: str, adapter: str | None, name: str, device: str) -> None:
    golden = arrays(f"golden/{file}.npz")
    adapters = [] if adapter is None else [data(adapter)]
    found = lg.load(data(model), adapters, device=device, activations="f32").logits(golden["ids"][:IDS])
    assert nmse(found, golden[name][:IDS]) < GPU_F32


@pytest.mark.parametrize("device", WITH_DEVICES)
def test_what_is_said_is_what_the_cpu_says(device: str) -> None:
    base, adapter = data("llama-kjv"), data("llama-kjv.shakespeare")
    exact: dict[str, Any] = {} if device == "webgpu" else {"activations": "f32"}  # bfloat16 is not enough
    model = lg.load(base, [adapter], device=device, **exact)
    cpu = lg.load(base, [adapter], activations="f32")
    stream, expected = (one.generate("ROMEO:", max_tokens=12, temperature=0) for one in (model, cpu))
    assert "".join(stream) == "".join(expected)
    ids = np.arange(3, 12, dtype=np.int32)
    with_adapter = model.logits(ids)
    assert nmse(with_adapter, cpu.logits(ids)) < KEYS_VALUES_F16
    model.set_adapters([(adapter, 0.25)])
    cpu.set_adapters([(adapter, 0.25)])
    weaker = model.logits(ids)
    assert nmse(weaker, cpu.logits(ids)) < KEYS_VALUES_F16
    assert nmse(weaker, with_adapter) > 1e-4


def test_measurements_name_the_device() -> None:
    how = lg.Measurement("text", device="webgpu")
    assert how.running == {"device": "webgpu"}
    with pytest.raises(LoragraftError, match="device: is not for imatrix: found webgpu, expected cpu"):
        how.only_on("native", "imatrix")


def test_where_a_calibration_rounds() -> None:
    assert accelerator_named("cpu") is None
    with pytest.raises(
        UnsupportedError, match=r"webgpu: runs models, but does not round: expected cpu, cuda or xpu"
    ):
        accelerator_named("webgpu")
    with pytest.raises(LoragraftError, match="device: no such device: found gpu"):
        accelerator_named("gpu")
    with pytest.raises(LoragraftError, match="calibrate_device: needs a calibration; give --calib"):
        lg.QuantizeOptions(calibrate_device="cuda")
