"""Records bitsandbytes.npz: weights that bitsandbytes quantized, and the floats that it makes of them (torch, CPU).

By case, what stands beside the weight in a checkpoint (`CASE:NAME`), and `CASE:floats` (float32).
"""

from __future__ import annotations

from pathlib import Path

import bitsandbytes.functional as bnb
import numpy as np
import torch

ROWS, COLUMNS = 64, 64
"""Whole blocks of 64 in a row: its kernel for the CPU takes the wrong scales where a block has several rows."""


def main() -> None:
    torch.manual_seed(0)
    found: dict[str, np.ndarray] = {}
    for case, kind, nested, dtype in (
        ("nf4-nested", "nf4", True, torch.bfloat16),
        ("nf4", "nf4", False, torch.float16),
        ("fp4", "fp4", False, torch.float32),
    ):
        weight = (torch.randn(ROWS, COLUMNS) * 0.1).to(dtype)
        codes, state = bnb.quantize_4bit(weight, quant_type=kind, compress_statistics=nested)
        found[f"{case}:weight"] = codes.numpy()
        found |= {f"{case}:weight.{name}": part.numpy() for name, part in state.as_dict(packed=True).items()}
        found[f"{case}:floats"] = bnb.dequantize_4bit(codes, state).float().numpy()
    codes8, scales, _ = bnb.int8_vectorwise_quant((torch.randn(ROWS, COLUMNS) * 0.1).half())
    found["int8:weight"], found["int8:SCB"] = codes8.numpy(), scales.numpy()
    found["int8:weight_format"] = np.zeros((), np.uint8)
    found["int8:floats"] = bnb.int8_vectorwise_dequant(codes8, scales).float().numpy()
    np.savez_compressed(Path(__file__).parent / "bitsandbytes.npz", **found)


if __name__ == "__main__":
    main()
