"""Records integer-weights.npz: weights that compressed-tensors 0.20.0 packed and unpacked, and AutoAWQ 0.2.9 unpacked.

    python make_integer_weights.py AUTOAWQ-SOURCE      (torch 2.13; AUTOAWQ-SOURCE: its unpacked source distribution)

`<case>:<tensor>` is what lies in a checkpoint, `<case>:floats` what the library makes of it.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import numpy as np
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

ROWS, COLUMNS = 64, 96
torch.manual_seed(0)
found: dict[str, np.ndarray] = {}


def record(case: str, tensors: dict[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        array = tensor.contiguous()
        found[f"{case}:{name}"] = array.numpy()


CASES = {
    "int4-group": (
        "pack-quantized",
        {"num_bits": 4, "strategy": "group", "group_size": 32, "symmetric": True},
    ),
    "int4-group-asym": (
        "pack-quantized",
        {"num_bits": 4, "strategy": "group", "group_size": 32, "symmetric": False},
    ),
    "int4-channel": ("pack-quantized", {"num_bits": 4, "strategy": "channel", "symmetric": True}),
    "int8-channel-asym": ("pack-quantized", {"num_bits": 8, "strategy": "channel", "symmetric": False}),
    "int3-group": (
        "pack-quantized",
        {"num_bits": 3, "strategy": "group", "group_size": 32, "symmetric": True},
    ),
    "bytes-channel": ("int-quantized", {"num_bits": 8, "strategy": "channel", "symmetric": True}),
    "bytes-channel-asym": ("int-quantized", {"num_bits": 8, "strategy": "channel", "symmetric": False}),
    "bytes-tensor": ("int-quantized", {"num_bits": 8, "strategy": "tensor", "symmetric": True}),
}
for case, (form, arguments) in CASES.items():
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**arguments), format=form)
    compressor = BaseCompressor.get_value_from_registry(form)
    groups = {"group": COLUMNS // 32, "channel": 1, "tensor": 1}[arguments["strategy"]]
    rows = 1 if arguments["strategy"] == "tensor" else ROWS
    bits = arguments["num_bits"]
    kind = torch.float16
    scale = (torch.rand(rows, groups) * 0.01 + 0.002).to(kind)
    half = 1 << (bits - 1)
    zero = torch.zeros(rows, groups, dtype=torch.int8)
    if not arguments["symmetric"]:
        zero = torch.randint(-half, half, (rows, groups), dtype=torch.int8)
    codes = torch.randint(-half, half, (ROWS, COLUMNS))
    width = COLUMNS // groups
    weight = (codes - zero.repeat_interleave(width, 1)) * scale.float().repeat_interleave(width, 1)
    state = {"weight": weight.to(torch.float32), "weight_scale": scale, "weight_zero_point": zero}
    if arguments["strategy"] == "tensor":
        state = {**state, "weight_scale": scale.reshape(1), "weight_zero_point": zero.reshape(1)}
    packed = compressor.compress(dict(state), scheme)
    record(case, packed)
    record(case, {"floats": compressor.decompress(dict(packed), scheme)["weight"]})

packing = runpy.run_path(str(Path(sys.argv[1]) / "awq" / "utils" / "packing_utils.py"))
words = {
    "qweight": torch.randint(-(2**31), 2**31, (COLUMNS, ROWS // 8), dtype=torch.int32),
    "qzeros": torch.randint(-(2**31), 2**31, (COLUMNS // 32, ROWS // 8), dtype=torch.int32),
    "scales": (torch.rand(COLUMNS // 32, ROWS) * 0.01 + 0.002).half(),
}
record("awq", words)
record(
    "awq", {"floats": packing["dequantize_gemm"](words["qweight"], words["qzeros"], words["scales"], 4, 32).T}
)
np.savez_compressed(Path(__file__).with_name("integer-weights.npz"), **found)
