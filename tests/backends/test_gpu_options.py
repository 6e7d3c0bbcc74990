"""What no backend for GPUs does is refused in one line, before it looks for a GPU."""

from __future__ import annotations

import numpy as np
import pytest

from loragraft.backends.program import Backend, Options
from loragraft.backends.triton.program import TritonBackend
from loragraft.backends.webgpu.program import WebGPUBackend
from loragraft.errors import UnsupportedError
from small_models import small_model


@pytest.mark.parametrize(("backend", "name"), [(WebGPUBackend(), "webgpu"), (TritonBackend(), "cuda")])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            Options(activations="q8"),
            "activations: no such kind on {}: found q8, expected one of auto, f32; use --device cpu",
        ),
        (Options(adapter_type="q8"), "adapter_type: no such kind on {}: found q8, expected one of auto"),
        (Options(keys_values="q8_0"), "keys_values: no such kind on {}: found q8_0"),
        (Options(unchecked=True), "{}: this backend fuses every epilogue in its legal order"),
    ],
)
def test_settings_that_they_lack(backend: Backend, name: str, options: Options, message: str) -> None:
    small = small_model("llama", np.random.default_rng(2))
    with pytest.raises(UnsupportedError, match=message.format(name)):
        backend.prepare(small.graph(), small.arrays, options)
