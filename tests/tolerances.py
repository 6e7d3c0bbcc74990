"""How far two computations of the same thing may differ, and why; docs/numerics.md shows this table.

All are normalised mean squared errors of logits: sum((y - y0)^2) / sum(y0^2).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

#: The reference backend against transformers, or against float64: float32 rounding in sums of a few hundred products,
#: through a few layers. Measured: 1e-13; a wrong epsilon or a swapped pair gives 1e-4 and more.
REFERENCE = 1e-11
#: As above, where the file's weights were rounded to F16 after a merge and the oracle's were not: (2^-11)^2 / 3 = 8e-8
#: for each weight relative to its own size, on the adapted weights only.
REFERENCE_F16_MERGE = 1e-6
#: The native backend with float32 activations against float64: float32 rounding in another order, and its own exp.
NATIVE_F32 = 1e-11
#: A GPU against the same: as above; exp and division are only as exact as the device's. Measured on lavapipe and in
#: Triton's interpreter: 4e-13.
GPU_F32 = 1e-9
#: The native backend with 8-bit activations on quantized weights: a block of 32 is off by about amax / 127 / sqrt(12),
#: in every product. Measured: up to 5e-5.
NATIVE_Q8 = 2e-4
#: A and B in 8 bits beside them, against 11 bits: blocks of 32 (A) or 16 (B), and the x of A. Random adapters as large
#: as the weights that they change. Measured: up to 3e-4.
ADAPTERS_Q8 = 1e-3
#: Keys and values kept as F16, each off by up to 2^-12 of itself. Measured: 2e-8.
KEYS_VALUES_F16 = 2e-7
#: As Q8_0, in groups of 32 along a head. Measured: 2e-5.
KEYS_VALUES_Q8_0 = 2e-4
#: W4A4: activations rounded to E2M1 as well. Measured: up to 9e-3.
NATIVE_NVFP4 = 2e-2
#: llama.cpp with weights, keys and values in F32, against transformers. Its GELU is a table of F16 numbers: 5e-7; all
#: else gives 1e-12, but for two epsilons that it reads otherwise (1e-7). A wrong window, scale or pair gives 1e-4 and
#: more, one pair that does not turn 3e-6.
LLAMA_CPP = 1e-6


def nmse(found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> float:
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return float(np.sum((found - expected) ** 2) / np.sum(expected**2))
