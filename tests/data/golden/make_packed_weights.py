"""Records packed-weights.npz: weights as AutoAWQ 0.2.9 (gemv), AutoGPTQ 0.7.1 (Marlin) and HQQ 0.2.8 pack them.

    python make_packed_weights.py AUTOAWQ AUTOGPTQ     (folders of the unpacked packages; torch 2.13, hqq, termcolor)

`<case>:<tensor>` is what lies in a checkpoint. `<case>:floats` is what it means: HQQ's own dequantization of it, and,
of the two that dequantize on a GPU alone, the weight that they packed, which lies on their grid.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import torch
from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

torch.manual_seed(0)
found: dict[str, np.ndarray] = {}


def record(case: str, tensors: dict[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        kept = tensor.detach().contiguous()
        # NumPy has no BF16: its bits
        found[f"{case}:{name}"] = (kept.view(torch.int16) if kept.dtype == torch.bfloat16 else kept).numpy()


def on_a_grid(out: int, columns: int, group: int, *, symmetric: bool) -> tuple[torch.Tensor, ...]:
    """A weight [out, in] in F16, and its scales and zeros [out, groups]."""
    groups = columns // group
    scales = (torch.rand(out, groups) * 0.01 + 0.002).half()
    zeros = torch.full((out, groups), 8) if symmetric else torch.randint(0, 16, (out, groups))
    codes = torch.randint(0, 16, (out, columns))
    whole = (codes - zeros.repeat_interleave(group, 1)).float() * scales.repeat_interleave(group, 1).float()
    return whole.half(), scales, zeros


# ---- AWQ, gemv ----

for name in ("awq", "awq.utils"):  # without what the packages import for whole models
    sys.modules[name] = ModuleType(name)
    sys.modules[name].__path__ = [str(Path(sys.argv[1], *name.split(".")))]
gemv = runpy.run_path(str(Path(sys.argv[1]) / "awq" / "modules" / "linear" / "gemv.py"))["WQLinear_GEMV"]
for group, columns in ((128, 256), (64, 192), (32, 352)):
    weight, scales, zeros = on_a_grid(16, columns, group, symmetric=False)
    linear = torch.nn.Linear(columns, 16, bias=False)
    linear.weight.data = weight.float()
    packed = gemv.from_linear(linear, 4, group, scales=scales.float(), zeros=zeros.float())
    names = ("qweight", "qzeros", "scales")
    record(f"gemv-{group}", {name: getattr(packed, name) for name in names})
    record(f"gemv-{group}", {"floats": weight})

# ---- GPTQ in Marlin's layout: its smallest matrix ----

path = Path(sys.argv[2]) / "auto_gptq" / "nn_modules" / "qlinear" / "qlinear_marlin.py"
marlin = runpy.run_path(str(path))["QuantLinear"]
for group, columns in ((128, 256), (128, 128)):
    weight, scales, _ = on_a_grid(256, columns, group, symmetric=True)
    # without its own constructor, which wants a GPU
    layer = SimpleNamespace(
        infeatures=columns,
        outfeatures=256,
        group_size=group,
        B=torch.empty(columns // 16, 512, dtype=torch.int),
        s=torch.empty(columns // group, 256).half(),
        bias=None,
    )
    marlin.pack(
        layer, SimpleNamespace(weight=torch.nn.Parameter(weight, requires_grad=False), bias=None), scales
    )
    # of every fifth row: they have each place in a block of 64
    record(f"marlin-{columns // group}", {"B": layer.B, "s": layer.s, "floats": weight[::5]})

# ---- HQQ ----

CASES = [(bits, axis, torch.float16) for bits in (8, 4, 3, 2, 1) for axis in (0, 1)]
CASES += [(5, 1, torch.float16), (4, 1, torch.bfloat16), (4, 1, torch.float32)]
for bits, axis, kind in CASES:
    for as_float in (False, True) if (bits, axis, kind) == (4, 1, torch.float16) else (False,):
        config = BaseQuantizeConfig(nbits=bits, group_size=16, axis=axis, view_as_float=as_float)
        config["weight_quant_params"]["optimize"] = False
        linear = torch.nn.Linear(48, 24, bias=False)
        packed = HQQLinear(linear, config, compute_dtype=kind, device="cpu")
        case = f"hqq-{bits}-{axis}-{str(kind).removeprefix('torch.')}{'-as-float' if as_float else ''}"
        record(case, packed.state_dict())
        record(case, {"floats": packed.dequantize()})

np.savez_compressed(Path(__file__).parent / "packed-weights.npz", **found)
